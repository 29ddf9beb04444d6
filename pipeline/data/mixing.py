"""Mixup, cutmix and random erasing of a whole batch at once; a mixed target is a mean of two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.loading import Rows
from pipeline.data.shares import Share
from pipeline.data.transfer import EpochTable
from pipeline.seeding import seeded
from pipeline.spec import AugmentSpec

# N positions of an epoch, B batch, C channels, S pixels, K labels
Floats = npt.NDArray[np.float64]


class Mixing:
    """The mixtures of one epoch of one stream, whose batches are `spans` of its positions.

    Draws are a function of (seed, epoch, position).
    """

    def __init__(
        self, spec: AugmentSpec, seed: int, epoch: int, spans: Sequence[slice], image_px: int
    ) -> None:
        self.spec = spec
        self.partner_N: Rows | None = None  # the position that each one is mixed with; None: nothing is
        images = spans[-1].stop if spans else 0
        rng = seeded(seed, "mixing", epoch)
        if spec.mixup or spec.cutmix:
            draws_N5 = rng.random((images, 5), dtype=np.float32)
            mixup_N = rng.beta(spec.mixup, spec.mixup, images) if spec.mixup else np.ones(images)
            cutmix_N = rng.beta(spec.cutmix, spec.cutmix, images) if spec.cutmix else np.ones(images)
            self._partner_N = EpochTable(_partners(draws_N5[:, 0], spans))
            mixed_N = draws_N5[:, 1] < spec.mix_fraction
            cut_N = mixed_N & ((draws_N5[:, 2] < 0.5) | (not spec.mixup)) & bool(spec.cutmix)
            blend_N = np.where(mixed_N & ~cut_N, mixup_N, 1.0)
            areas_N = np.where(cut_N, 1 - cutmix_N, 0.0)
            boxes_N4 = _boxes(areas_N, np.ones(images), draws_N5[:, 3:], image_px)
            self._pasted_N4 = EpochTable(boxes_N4)
            own_N = blend_N * (1 - _fraction(boxes_N4, image_px))
            self._shares_N2 = EpochTable(np.stack([blend_N, own_N], axis=1).astype(np.float32))
            # without a mixture none is needed
            self.partner_N = np.where(
                mixed_N, _positions(self._partner_N.values_NX, spans), np.arange(images)
            )
        if spec.random_erasing:
            draws_N5 = seeded(seed, "erasing", epoch).random((images, 5), dtype=np.float32)
            low, high = spec.random_erasing_area
            areas_N = np.where(draws_N5[:, 0] < spec.random_erasing, low + (high - low) * draws_N5[:, 1], 0)
            ratios_N = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * draws_N5[:, 2])
            self._erased_N4 = EpochTable(_boxes(areas_N, ratios_N, draws_N5[:, 3:], image_px))

    def __call__(self, inputs_BCSS: Tensor, targets_BK: Tensor, span: slice) -> tuple[Tensor, Tensor]:
        """Mix the normalised pictures of a batch and their targets; a mixed target lies anywhere in [0, 1].

        Each picture is mixed with its successor in a random cyclic order of the batch. mixup (Zhang et al.
        2018) blends the two, cutmix (Yun et al. 2019) pastes a rectangle of the other; with both, each
        picture takes one of them.
        """
        if self.partner_N is None:
            return self._erased(inputs_BCSS, span), targets_BK
        other_B = self._partner_N.at(span, inputs_BCSS.device)
        mixed_BCSS = self._mixed(inputs_BCSS, inputs_BCSS[other_B], span)
        return self._erased(mixed_BCSS, span), self._mixed_targets(targets_BK, span)

    def of_share(
        self, made_MCSS: Tensor, targets_BK: Tensor, span: slice, share: Share, number: int
    ) -> tuple[Tensor, Tensor]:
        """The same of batch `number` where a process has made its share of it: its own pictures, all targets."""
        own = share.own[number]
        if self.partner_N is None:
            return self._erased(made_MCSS, own), targets_BK
        other_B = share.others(number, made_MCSS.device)
        mixed_BCSS = self._mixed(made_MCSS[: len(other_B)], made_MCSS[other_B], own)
        return self._erased(mixed_BCSS, own), self._mixed_targets(targets_BK, span)

    def _mixed(self, inputs_BCSS: Tensor, others_BCSS: Tensor, span: slice) -> Tensor:
        shares_B2 = self._shares_N2.at(span, inputs_BCSS.device)
        box_BSS = _mask(self._pasted_N4.at(span, inputs_BCSS.device), inputs_BCSS.shape[-1])
        blended = torch.lerp(others_BCSS, inputs_BCSS, shares_B2[:, 0, None, None, None])
        return torch.where(box_BSS[:, None], others_BCSS, blended)

    def _mixed_targets(self, targets_BK: Tensor, span: slice) -> Tensor:
        device = targets_BK.device
        shares_B2 = self._shares_N2.at(span, device)
        return torch.lerp(targets_BK[self._partner_N.at(span, device)], targets_BK, shares_B2[:, 1, None])

    def _erased(self, inputs_BCSS: Tensor, span: slice) -> Tensor:
        if not self.spec.random_erasing:
            return inputs_BCSS
        box_BSS = _mask(self._erased_N4.at(span, inputs_BCSS.device), inputs_BCSS.shape[-1])
        return inputs_BCSS.masked_fill(box_BSS[:, None], 0)  # 0 is the mean colour


def _partners(draws_N: npt.NDArray[np.float32], spans: Sequence[slice]) -> npt.NDArray[np.int64]:
    """Of each position the place within its batch of the picture that it is mixed with."""
    partner_N = np.empty(len(draws_N), np.int64)
    for span in spans:
        circle = np.argsort(draws_N[span], kind="stable")
        partner_N[span][circle] = np.roll(circle, 1)
    return partner_N


def _positions(partner_N: Rows, spans: Sequence[slice]) -> Rows:
    """The same places counted from the begin of the epoch."""
    position_N = partner_N.copy()
    for span in spans:
        position_N[span] += span.start
    return position_N


def _boxes(areas_N: Floats, ratios_N: Floats, centre_N2: npt.NDArray[np.float32], image_px: int) -> Floats:
    """One rectangle per image of that fraction of its area, anywhere inside: top, bottom, left, right in pixels."""
    height_N = np.minimum(np.rint(image_px * np.sqrt(areas_N * ratios_N)), image_px)
    width_N = np.minimum(np.rint(image_px * np.sqrt(areas_N / ratios_N)), image_px)
    top_N = np.floor((image_px - height_N + 1) * centre_N2[:, 0])
    left_N = np.floor((image_px - width_N + 1) * centre_N2[:, 1])
    return np.stack([top_N, top_N + height_N, left_N, left_N + width_N], axis=1)


def _fraction(boxes_N4: Floats, image_px: int) -> Floats:
    """Of the picture's area, exactly."""
    top_N, bottom_N, left_N, right_N = boxes_N4.T
    fraction_N: Floats = (bottom_N - top_N) * (right_N - left_N) / image_px**2
    return fraction_N


def _mask(boxes_B4: Tensor, image_px: int) -> Tensor:
    """(B, S, S) bool: inside the rectangle of each image."""
    pixels_S = torch.arange(image_px, device=boxes_B4.device)
    top_B, bottom_B, left_B, right_B = boxes_B4[:, :, None].unbind(1)
    rows_BS = (pixels_S >= top_B) & (pixels_S < bottom_B)
    columns_BS = (pixels_S >= left_B) & (pixels_S < right_B)
    return rows_BS[:, :, None] & columns_BS[:, None, :]
