"""What the frozen part of a network makes of pictures, computed once for all cells that train the rest.

Kept beside the packed set, keyed by everything it depends on; of several processes one computes, the
others wait and use it.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import functools
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import Augmentation
from pipeline.data.inputs import to_input
from pipeline.data.loading import STREAM_VERSION, Rows, Stream, in_order
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import pixel_cache
from pipeline.models.build import frozen_part
from pipeline.models.device import ExecutionConfig
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.scoring import shrink_batch_to_fit
from pipeline.spec import AugmentSpec, TrainSpec
from pipeline.spec.identity import digest, pixel_versions
from pipeline.storage.files import atomic_write

_VERSION = 2  # of what is computed here
FEATURE_BATCH = 64


class FrozenNetwork:
    """A network up to what learns, and where its features of a packed set are kept.

    Features are (N, ...) in the network's own precision; maps (N, D, H, W) are kept as (N, H, W, D).
    """

    def __init__(
        self, net: nn.Module, train: TrainSpec, packed: PackedSet, execution: ExecutionConfig
    ) -> None:
        self.train, self.packed, self.execution = train, packed, execution
        self._net = frozen_part(copy.deepcopy(net), train.model)

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
        draws = None if view is None else [train.augment.model_dump(mode="json"), train.seed, view]
        parts = [_VERSION, STREAM_VERSION, torch.__version__, self.packed.digest, _sha256(rows), draws]
        versions = pixel_versions(train, is_augmented=view is not None)
        execution = [self.execution.device, self.execution.precision, self.execution.threads]
        key = digest(
            [*parts, train.model.name, train.model.trainable, self._weights, train.image_px, execution]
            + [versions] * bool(versions)
        )
        path = self.packed.path / "features" / f"{key[:32]}.npz"
        with _locked(path):
            # absent or damaged
            with (
                contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile),
                np.load(path) as file,
            ):
                return torch.from_numpy(file["bytes"]).view(getattr(torch, str(file["dtype"])))
            features = shrink_batch_to_fit(functools.partial(self._compute, rows, view), FEATURE_BATCH)
            try:
                with atomic_write(path) as file:
                    np.savez(file, bytes=features.view(torch.uint8).numpy(), dtype=str(features.dtype)[6:])
            except OSError as error:  # a shared set that only its owner may add to
                print(f"{path}: cannot be kept ({error.strerror}); used for this run alone", flush=True)
        return features

    @torch.inference_mode()
    def _compute(self, rows: Rows, view: int | None, batch_size: int) -> Tensor:
        train, pixels = self.train, pixel_cache(self.packed, self.execution.device)
        net = fuse_conv_bn(self._net)
        if view is None:
            batches, augmentation = in_order(self.packed, rows, batch_size, read=pixels.read), None
        else:
            batches = Stream(self.packed, rows, batch_size, train.seed).batches(view, read=pixels.read)
            augmentation = Augmentation(train.augment, train.seed, view, len(rows))
        place = positions_of(rows, len(self.packed))
        normalisation = train.model.normalisation
        features: Tensor | None = None
        for batch in batches:
            images_BHWC = pixels.of(batch)
            if augmentation is None:
                inputs = to_input(images_BHWC, train.image_px, normalisation)
            else:
                inputs = augmentation(images_BHWC, batch.positions_B, train.image_px, normalisation)
            with self.execution.autocast():  # only the network: in bf16 a crop would be off by a pixel
                found = _channels_last(net(inputs).cpu())
            if features is None:
                features = torch.empty((len(rows), *found.shape[1:]), dtype=found.dtype)
            features[torch.from_numpy(place[batch.rows_B])] = found
        assert features is not None
        size = f"{features[0].numel():,} each, {features.nbytes / 2**20:,.0f} MiB"
        print(f"features of {len(rows)} pictures, view {view}: {size}", flush=True)
        return features

    @functools.cached_property
    def _weights(self) -> str:
        sha = hashlib.sha256()
        for name, value in self._net.state_dict().items():
            sha.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


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


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock that others wait for; where locks do not work, the same is computed twice and put in place once."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            file = stack.enter_context(path.with_name(f".{path.stem}.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
