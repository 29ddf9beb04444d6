"""What a frozen network makes of pictures, computed once for all cells that train only its last layer.

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
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.data.augment import Augmentation, to_input
from pipeline.data.loading import STREAM_VERSION, Rows, Stream, in_order
from pipeline.data.packed import PackedSet
from pipeline.data.residence import pixels_on
from pipeline.device import Settled
from pipeline.files import atomic_write
from pipeline.folding import folded
from pipeline.identity import digest
from pipeline.models import head_of, without_head
from pipeline.scoring import Scorer
from pipeline.spec import AugmentSpec, TrainSpec

# N rows, D features
Features = npt.NDArray[np.float32]
_VERSION = 1  # of what is computed here


class FrozenNetwork:
    """A network up to its last layer, and where its features of a packed set are kept."""

    def __init__(self, net: nn.Module, train: TrainSpec, packed: PackedSet, settled: Settled) -> None:
        self.train, self.packed, self.settled = train, packed, settled
        self._net = without_head(copy.deepcopy(net), train.model.name)

    @property
    def views(self) -> int:
        """How many different views there are of a training picture; 1 where nothing about it is random."""
        return (self.train.feature_views or 1) if self._is_random else 1

    def training(self, rows: Rows, view: int) -> Features:
        """(N, D) of the training rows, drawn as the epoch `view` draws them."""
        if not self._is_random:
            return self._kept(rows, None)
        return self._kept(rows, view)

    def plain(self, rows: Rows) -> Features:
        """(N, D) of rows as they are scored."""
        return self._kept(rows, None)

    @property
    def _is_random(self) -> bool:
        return self.train.augment != AugmentSpec(hflip=0.0)

    def _kept(self, rows: Rows, view: int | None) -> Features:
        train = self.train
        draws = None if view is None else [train.augment.model_dump(mode="json"), train.seed, view]
        parts = [_VERSION, STREAM_VERSION, torch.__version__, self.packed.digest, _sha256(rows), draws]
        settled = [self.settled.device, self.settled.precision, self.settled.threads]
        key = digest([*parts, train.model.name, self._weights, train.image_px, settled])
        path = self.packed.path / "features" / f"{key[:32]}.npz"
        with _one_at_a_time(path):
            with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):  # absent or damaged
                with np.load(path) as file:
                    features: Features = file["features"]
                return features
            features = self._compute(rows, view)
            try:
                with atomic_write(path) as file:
                    np.savez(file, features=features)
            except OSError as error:  # a shared set that only its owner may add to
                print(f"{path}: cannot be kept ({error.strerror}); used for this run alone", flush=True)
        return features

    @torch.inference_mode()
    def _compute(self, rows: Rows, view: int | None) -> Features:
        train, pixels = self.train, pixels_on(self.packed, self.settled.device)
        net = folded(self._net)
        if view is None:
            batches, augmentation = in_order(self.packed, rows, 128, read=pixels.read), None
        else:
            batches = Stream(self.packed, rows, 128, train.seed).batches(view, read=pixels.read)
            augmentation = Augmentation(train.augment, train.seed, view, len(rows))
        place = _places(rows, len(self.packed))
        features: Features | None = None
        with self.settled.autocast():
            for batch in batches:
                images_BHWC = pixels.of(batch)
                if augmentation is None:
                    inputs = to_input(images_BHWC, train.image_px)
                else:
                    inputs = augmentation(images_BHWC, batch.positions_B, train.image_px)
                found = net(inputs).float().cpu().numpy()
                if features is None:
                    features = np.empty((len(rows), found.shape[1]), np.float32)
                features[place[batch.rows_B]] = found
        assert features is not None
        print(f"features of {len(rows)} pictures, view {view}: {features.shape[1]} each", flush=True)
        return features

    @functools.cached_property
    def _weights(self) -> str:
        sha = hashlib.sha256()
        for name, value in self._net.state_dict().items():
            sha.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


class FeatureFeed:
    """Batches of features instead of pictures: the same rows in the same order as without the cache."""

    def __init__(self, frozen: FrozenNetwork, stream: Stream, validation: Rows) -> None:
        self.frozen, self._stream = frozen, stream
        self._device = frozen.settled.device
        self.steps_per_epoch = stream.steps_per_epoch
        self._place = _places(stream.rows, len(frozen.packed))
        self._view: tuple[int, torch.Tensor] | None = None
        self._validation = torch.from_numpy(frozen.plain(validation)).to(self._device)

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(features (B, D), targets (B, K)) from `first_step` of `epoch` on; epochs take the views in turn."""
        view = epoch % self.frozen.views
        if self._view is None or self._view[0] != view:
            features_ND = torch.from_numpy(self.frozen.training(self._stream.rows, view)).to(self._device)
            self._view = (view, features_ND)
        for batch in self._stream.batches(epoch, first_step, read=False):
            chosen = torch.from_numpy(self._place[batch.rows_B]).to(self._device)
            yield self._view[1][chosen], torch.from_numpy(batch.targets_BK).to(self._device).float()

    @torch.inference_mode()
    def logits(self, scorers: Sequence[Scorer]) -> list[torch.Tensor]:
        """Of the validation rows, under the last layer of each."""
        result = []
        for scorer in scorers:
            head = head_of(scorer.net, self.frozen.train.model.name).eval()
            with scorer.settled.autocast():
                result.append(head(self._validation).float().cpu())
        return result


def _places(rows: Rows, total: int) -> Rows:
    """Row in the packed set -> its place among `rows`."""
    places = np.full(total, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return places


def _sha256(rows: Rows) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """A lock that others wait for; where locks do not work, the same is computed twice and put in place once."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            file = stack.enter_context(path.with_name(f".{path.stem}.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
