"""Batches on the device, for training and for validation: pixels, or features that were computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.data.augment import Augmentation
from pipeline.data.loading import Rows, Stream
from pipeline.data.mixing import Mixing
from pipeline.data.pixel_cache import fits_on_gpu, pixel_cache
from pipeline.models.build import trainable_part
from pipeline.models.features import FEATURE_BATCH, FrozenNetwork, channels_first, positions_of
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.scoring import Scorer, compute_logits
from pipeline.spec import TrainSpec
from pipeline.training.learner import Learner


class Feed(Protocol):
    """What the loop takes batches from; cells of one stream share it."""

    steps_per_epoch: int

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs (B, ...), targets (B, K) float32) from `first_step` of `epoch` (both 0-based) on."""
        ...

    def logits(self, scorers: Sequence[Scorer]) -> list[Tensor]:
        """(N, K) float32 on the CPU of the validation images, under each network, in one pass."""
        ...


def build_feed(learner: Learner) -> Feed:
    """Pixels, or with `train.cached_views` the features of the frozen part."""
    data = learner.data
    if learner.train.cached_views is None:
        return PixelFeed(learner.train, learner.stream, data.validation, learner.execution.device)
    frozen = FrozenNetwork(learner.net, learner.train, data.packed, learner.execution)
    return FeatureFeed(frozen, learner.stream, data.validation)


class PixelFeed:
    """Augmented images of a stream, epoch by epoch."""

    def __init__(self, recipe: TrainSpec, stream: Stream, validation: Rows, device: str) -> None:
        self.recipe, self.stream, self.validation, self.device = recipe, stream, validation, device
        self.steps_per_epoch = stream.steps_per_epoch

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs (B, C, S, S), targets (B, K)) from `first_step` of `epoch` on."""
        recipe, stream, pixels = self.recipe, self.stream, pixel_cache(self.stream.packed, self.device)
        augmentation = Augmentation(recipe.augment, recipe.seed, epoch, stream.images)
        mixing = Mixing(recipe.augment, recipe.seed, epoch, stream.images)
        for batch in stream.batches(epoch, first_step, read=pixels.read):
            images_BHWC = pixels.of(batch)
            inputs_BCHW = augmentation(
                images_BHWC, batch.positions_B, recipe.image_px, recipe.model.normalisation
            )
            targets_BK = torch.from_numpy(batch.targets_BK).to(self.device).float()
            yield mixing(inputs_BCHW, targets_BK, batch.positions_B)

    def logits(self, scorers: Sequence[Scorer]) -> list[Tensor]:
        """Of the validation images, under each."""
        return compute_logits(scorers, self.stream.packed, self.validation) if scorers else []


class FeatureFeed:
    """Features instead of images: the same rows in the same order as without the cache."""

    def __init__(self, frozen: FrozenNetwork, stream: Stream, validation: Rows) -> None:
        self.frozen, self._stream = frozen, stream
        self._device = frozen.execution.device
        self.steps_per_epoch = stream.steps_per_epoch
        self._positions = positions_of(stream.rows, len(frozen.packed))
        self._view: tuple[int, Tensor] | None = None
        self._rows = validation
        self._validation = frozen.plain(validation)

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(features (B, ...), targets (B, K)) from `first_step` of `epoch` on; epochs take the views in turn."""
        view = epoch % self.frozen.views
        if self._view is None or self._view[0] != view:
            self._view = None  # two would be twice the memory
            features = self.frozen.augmented(self._stream.rows, view)
            on_gpu = self._device == "cuda" and fits_on_gpu(features.nbytes)
            self._view = (view, features.to(self._device) if on_gpu else features)
        features = self._view[1]
        for batch in self._stream.batches(epoch, first_step, read=False):
            chosen = torch.from_numpy(self._positions[batch.rows_B]).to(features.device)
            targets_BK = torch.from_numpy(batch.targets_BK).to(self._device).float()
            yield channels_first(features[chosen].to(self._device)), targets_BK

    @torch.inference_mode()
    def logits(self, scorers: Sequence[Scorer]) -> list[Tensor]:
        """Of the validation rows under each: from cached features, or from images of other sizes and flips."""
        train = self.frozen.train
        if any(scorer.flips or scorer.image_px != train.image_px for scorer in scorers):
            return compute_logits(scorers, self.frozen.packed, self._rows)
        result = []
        for scorer in scorers:
            part = fuse_conv_bn(trainable_part(scorer.net, train.model))
            with scorer.execution.autocast():
                batches = [channels_first(b.to(self._device)) for b in self._validation.split(FEATURE_BATCH)]
                result.append(torch.cat([part(batch).float().cpu() for batch in batches]))
        return result
