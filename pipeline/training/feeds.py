"""Batches of pictures on the device, for training and for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.data.augment import Augmentation
from pipeline.data.loading import Rows, Stream
from pipeline.data.mixing import Mixing
from pipeline.data.pixel_cache import pixel_cache
from pipeline.models.scoring import Scorer, compute_logits
from pipeline.spec import TrainSpec


class PixelFeed:
    """Augmented pictures of a stream, epoch by epoch."""

    def __init__(self, recipe: TrainSpec, stream: Stream, validation: Rows, device: str) -> None:
        self.recipe, self.stream, self.validation, self.device = recipe, stream, validation, device
        self.steps_per_epoch = stream.steps_per_epoch

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs (B, C, S, S), targets (B, K)) from `first_step` of `epoch` on."""
        recipe, stream, pixels = self.recipe, self.stream, pixel_cache(self.stream.packed, self.device)
        augmentation = Augmentation(recipe.augment, recipe.seed, epoch, stream.images)
        mixing = Mixing(recipe.augment, recipe.seed, epoch, stream.images)
        for batch in stream.batches(epoch, first_step, read=pixels.read):
            inputs_BCHW = augmentation(pixels.of(batch), batch.positions_B, recipe.image_px)
            targets_BK = torch.from_numpy(batch.targets_BK).to(self.device).float()
            yield mixing(inputs_BCHW, targets_BK, batch.positions_B)

    def logits(self, scorers: Sequence[Scorer]) -> list[Tensor]:
        """Of the validation pictures, under each."""
        return compute_logits(scorers, self.stream.packed, self.validation) if scorers else []
