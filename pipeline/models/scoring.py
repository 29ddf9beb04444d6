"""The one way to score images, used by validation, evaluate and predict; several networks share one pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.data.inputs import to_input
from pipeline.data.loading import Rows, in_order
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import pixel_cache
from pipeline.errors import DivergedError
from pipeline.models.device import ExecutionConfig
from pipeline.models.fusing import fuse_conv_bn
from pipeline.spec import Normalisation

# N images, K labels
Found = TypeVar("Found")


@dataclass(frozen=True)
class Scored:
    """Logits, scores (sigmoid of them, in [0, 1]) and targets of some rows, in their order."""

    ids: list[str]
    logits_NK: npt.NDArray[np.float32]
    scores_NK: npt.NDArray[np.float32]
    targets_NK: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, logits_NK: Tensor, packed: PackedSet, rows: Rows) -> Scored:
        """Raises DivergedError when a score is not finite, naming the first image."""
        broken = (~torch.isfinite(logits_NK).all(dim=1)).nonzero()
        if len(broken):
            name = packed.names[rows[int(broken[0])]]
            raise DivergedError(
                f"scores of {len(broken)} images are not finite, first {name}; the network diverged"
            )
        return cls(
            ids=[packed.ids[row] for row in rows],
            logits_NK=logits_NK.numpy(),
            scores_NK=torch.sigmoid(logits_NK).numpy(),
            targets_NK=packed.labels_NK[rows],
        )


@dataclass(frozen=True)
class Scorer:
    """A network (on its device), the size and normalisation of its input, the precision it is scored in.

    With `flips` a logit is the mean over a picture and its mirror image.
    """

    net: nn.Module
    image_px: int
    execution: ExecutionConfig
    normalisation: Normalisation
    flips: bool = False

    @property
    def input_kind(self) -> tuple[int, Normalisation]:
        """What pictures must become; scorers of one kind share them."""
        return self.image_px, self.normalisation

    def logits(self, inputs_BCHW: Tensor) -> Tensor:
        """(B, K) float32 of inputs of its size, on its device."""
        views = [inputs_BCHW, inputs_BCHW.flip(3)] if self.flips else [inputs_BCHW]
        with self.execution.autocast():
            return torch.stack([self.net(view).float() for view in views]).mean(dim=0)


@torch.inference_mode()
def compute_logits(
    scorers: Sequence[Scorer], packed: PackedSet, rows: Rows, *, batch_size: int = 128
) -> list[Tensor]:
    """Logits (N, K) float32 on the CPU of `rows` under each network, all on one device.

    Each batch is read once, and brought to each size and normalisation once. Puts the networks into
    evaluation mode (the caller sets training mode again). Where a GPU has no room for a batch, halves it.
    """
    return shrink_batch_to_fit(functools.partial(_compute_logits, scorers, packed, rows), batch_size)


def shrink_batch_to_fit(work: Callable[[int], Found], batch_size: int) -> Found:
    """What `work` makes with a batch size, halved as often as a GPU has no room for a batch."""
    try:
        return work(batch_size)
    except torch.OutOfMemoryError:
        if batch_size == 1:
            raise
    return shrink_batch_to_fit(work, -(-batch_size // 2))


def _compute_logits(
    scorers: Sequence[Scorer], packed: PackedSet, rows: Rows, batch_size: int
) -> list[Tensor]:
    scorers = [replace(scorer, net=fuse_conv_bn(scorer.net)) for scorer in scorers]
    parts: list[list[Tensor]] = [[] for _ in scorers]
    pixels = pixel_cache(packed, scorers[0].execution.device)
    for batch in in_order(packed, rows, batch_size, read=pixels.read):
        images_BHWC = pixels.of(batch)
        inputs = {kind: to_input(images_BHWC, *kind) for kind in {scorer.input_kind for scorer in scorers}}
        for scorer, logits in zip(scorers, parts, strict=True):
            logits.append(scorer.logits(inputs[scorer.input_kind]).cpu())
    return [torch.cat(logits) for logits in parts]


def compute_scores(
    scorers: Sequence[Scorer], packed: PackedSet, rows: Rows, *, batch_size: int = 128
) -> list[Scored]:
    """Scores of `rows` under each network, in one pass over the images; raises DivergedError."""
    logits = compute_logits(scorers, packed, rows, batch_size=batch_size)
    return [Scored.of(logits_NK, packed, rows) for logits_NK in logits]
