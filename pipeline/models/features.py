"""What the frozen part of a network makes of pictures, computed once for all cells that train the rest.

Kept beside the packed set, keyed by everything it depends on; of several processes one computes, the
others wait and use it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import Augmentation
from pipeline.data.inputs import to_input
from pipeline.data.layout import FEATURES
from pipeline.data.loading import STREAM_VERSION, Rows, Stream, spans_in_order
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import forget_pixels, pixel_cache
from pipeline.data.transfer import one_ahead, one_behind
from pipeline.distributed.group import SOLO, Group
from pipeline.models.build import frozen_part
from pipeline.models.device import ExecutionConfig
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.heads import ON_MAPS
from pipeline.models.kept_features import (
    FeatureProgress,
    Parts,
    Stopped,
    locked,
    read_features,
    write_features,
)
from pipeline.models.scoring import shrink_batch_to_fit
from pipeline.models.slices import in_slices
from pipeline.spec import AugmentSpec, TrainSpec
from pipeline.spec.identity import digest, pixel_versions

_VERSION = {"cpu": 2, "cuda": 3}  # of what is computed here
FEATURE_BATCH = 64


class FrozenNetwork:
    """A network up to what learns, and where its features of a packed set are kept.

    Features are (N, ...) in the network's own precision; maps (N, D, H, W) are kept as (N, H, W, D). They
    are kept in `folder`, else beside the set. Raises Stopped once `stopped` says so; what was made is kept.
    """

    def __init__(
        self,
        net: nn.Module,
        train: TrainSpec,
        packed: PackedSet,
        execution: ExecutionConfig,
        *,
        folder: Path | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.train, self.packed, self.execution = train, packed, execution
        self.folder, self.stopped = folder or packed.path / FEATURES, stopped
        # of a user's network also its code: what its weights are used for
        self._made_of = getattr(net, "labelgrid_made_of", None)
        self._libraries = _libraries(net, own=train.model.name.partition(".")[0])
        self._net = frozen_part(copy.deepcopy(net), train.model)
        self.group = SOLO

    def shared_by(self, group: Group) -> FrozenNetwork:
        """Itself, features being made by all ranks of a cell; every method is then called by all of them."""
        self.group = group
        return self

    @property
    def views(self) -> int:
        """How many different views there are of a training picture; 1 where nothing about it is random."""
        return (self.train.cached_views or 1) if self._is_random else 1

    def augmented(self, rows: Rows, view: int) -> Tensor:
        """Features of the training rows, drawn as the epoch `view` draws them."""
        return self._cached(rows, view if self._is_random else None)

    def plain(self, rows: Rows) -> Tensor:
        """Features of rows as they are scored."""
        return self._cached(rows, None)

    @property
    def _is_random(self) -> bool:
        return self.train.augment != AugmentSpec(hflip=0.0)

    def _cached(self, rows: Rows, view: int | None) -> Tensor:
        train = self.train
        # without `own`, which features exclude: those that are kept keep their names
        draws = (
            None
            if view is None
            else [train.augment.model_dump(mode="json", exclude={"own"}), train.seed, view]
        )
        version = _VERSION[self.execution.device]
        parts = [version, STREAM_VERSION, torch.__version__, self.packed.digest, _sha256(rows), draws]
        versions = pixel_versions(train, is_augmented=view is not None)
        execution = [self.execution.device, self.execution.precision, self.execution.threads]
        # of the same part, before the pooling; a last stage begins before it in any case
        takes_maps = train.model.head.name in ON_MAPS and train.model.trainable != "last_stage"
        key = digest(
            [*parts, train.model.name, train.model.trainable, self._weights, train.image_px, execution]
            + [versions] * bool(versions)
            + [train.model.head.name] * takes_maps
            + [self._made_of] * bool(self._made_of)
            + [self._libraries] * bool(self._libraries)
        )
        path = self.folder / f"{key[:32]}.npz"
        features = read_features(path)
        if not self.group.any(features is None):
            assert features is not None
            return features
        with self._locked(path):
            features = read_features(path)  # perhaps another process has made them meanwhile
            if self.group.any(features is None):
                work = functools.partial(self._compute, rows, view, path)
                features = shrink_batch_to_fit(work, FEATURE_BATCH, self.group)
                forget_pixels()  # the GPU's memory is for training now
                if self.group.leads and write_features(path, features):
                    Parts(path).clear()
        assert features is not None
        return features

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """The lock is rank 0's; the others wait with it, and all are stopped together."""
        if not self.group.leads:
            while self.group.from_leader(None):
                if self.group.any(self.stopped()):
                    raise Stopped
            yield
            return

        def still_waits() -> bool:
            self.group.from_leader(True)
            return self.group.any(self.stopped())

        with locked(path, still_waits):
            self.group.from_leader(False)
            yield

    def _in_turn(self, order: Rows, spans: list[slice], view: int | None) -> Iterator[Tensor]:
        """The features of each span on the host; ranks make one each at a time, and all get those of all.

        Raises OutOfMemoryError on all ranks where one of them has no room.
        """
        size, rank = self.group.size, self.group.rank
        own = one_behind(self._made(order, spans[rank::size], view))
        for start in range(0, len(spans), size):
            some = spans[start : start + size]
            mine, error = None, None
            try:
                mine = next(own) if rank < len(some) else None
            except torch.OutOfMemoryError as found:
                error = found
            if self.group.any(error is not None):
                raise error or torch.OutOfMemoryError(
                    "another process of this cell has no room for its pictures"
                )
            yield from self.group.each(mine, [span.stop - span.start for span in some])

    @torch.inference_mode()
    def _compute(self, rows: Rows, view: int | None, path: Path, batch_size: int) -> Tensor:
        order, spans = rows, spans_in_order(len(rows), batch_size)
        if view is not None:
            stream = Stream(self.packed, rows, batch_size, self.train.seed)
            order, spans = stream.order(view), stream.spans
        place = torch.from_numpy(positions_of(rows, len(self.packed))[order])
        parts, done = Parts(path), 0
        features: Tensor | None = None
        what = "pictures as they are scored" if view is None else f"view {view}"

        def put(found: Tensor, start: int) -> Tensor:
            into = (
                torch.empty((len(rows), *found.shape[1:]), dtype=found.dtype)
                if features is None
                else features
            )
            into[place[start : start + len(found)]] = found
            return into

        for found in parts.read() if self.group.size == 1 else self.group.from_leader(list(parts.read())):
            features, done = put(found, done), done + len(found)
        if done:
            print(f"features of {what}: going on behind the {done} pictures that are done", flush=True)
        progress = FeatureProgress(len(rows), done, what)
        spans = [slice(max(span.start, done), span.stop) for span in spans if span.stop > done]
        for span, found in zip(spans, self._in_turn(order, spans, view), strict=True):
            features = put(found, span.start)
            stopped = self.group.any(self.stopped()) and span.stop < len(rows)
            if stopped or parts.is_due:
                if self.group.leads:
                    parts.write(done, features[place[done : span.stop]])
                done = span.stop
            if stopped:
                raise Stopped
            progress.at(span.stop)
        assert features is not None
        size = f"{features[0].numel():,} each, {features.nbytes / 2**20:,.0f} MiB"
        print(f"features of {len(rows)} pictures, {what}: {size}", flush=True)
        return features

    def _made(self, order: Rows, spans: list[slice], view: int | None) -> Iterator[Tensor]:
        """The features of each span, on the device; channels last."""
        train, device = self.train, self.execution.device
        net, pixels = fuse_conv_bn(self._net), pixel_cache(self.packed, device)
        image_px, preprocessing = train.image_px, train.model.preprocessing
        augmentation = None if view is None else Augmentation(train.augment, train.seed, view, spans)

        def inputs() -> Iterator[Tensor]:
            for batch in pixels.batches(order, spans):
                if augmentation is None:
                    yield to_input(batch.images_BHWC, image_px, preprocessing)
                else:
                    yield augmentation(batch.images_BHWC, batch.span, image_px, preprocessing)

        for inputs_BCHW in one_ahead(inputs, device):
            with self.execution.autocast():  # only the network: in bf16 a crop would be off by a pixel
                yield _channels_last(in_slices(net, inputs_BCHW))

    @functools.cached_property
    def _weights(self) -> str:
        sha = hashlib.sha256()
        for name, value in self._net.state_dict().items():
            sha.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


def _libraries(net: nn.Module, own: str) -> dict[str, str]:
    """The version of each package, besides torch, whose classes the network is made of: another may compute otherwise.

    `own` is the user's own package, whose code is in the key already.
    """
    packages = {
        base.__module__.partition(".")[0] for part in net.modules() for base in type(part).__mro__
    } - {"torch", "pipeline", own}
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in sorted(packages)}
    return {name: version for name, version in versions.items() if isinstance(version, str)}


def _channels_last(features: Tensor) -> Tensor:
    return (features.permute(0, 2, 3, 1) if features.ndim == 4 else features).contiguous()


def channels_first(features: Tensor) -> Tensor:
    """Cached maps (B, H, W, D) as a network takes them, (B, D, H, W); other features as they are."""
    return features.permute(0, 3, 1, 2) if features.ndim == 4 else features


def positions_of(rows: Rows, total: int) -> Rows:
    """Row in the packed set -> its place among `rows`."""
    places = np.full(total, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return places


def _sha256(rows: Rows) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
