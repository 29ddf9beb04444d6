"""Mixup, cutmix and random erasing of a whole batch at once; a mixed target is a mean of two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.seeding import seeded
from pipeline.spec import AugmentSpec

# B batch, C channels, S pixels, K labels


class Mixing:
    """The mixtures of one epoch of one stream; draws are a function of (seed, epoch, position)."""

    def __init__(self, spec: AugmentSpec, seed: int, epoch: int, images: int) -> None:
        self.spec = spec
        rng = seeded(seed, "mixing", epoch)
        if spec.mixup or spec.cutmix:
            self.draws_N5 = rng.random((images, 5), dtype=np.float32)
            self.mixup_N = rng.beta(spec.mixup, spec.mixup, images) if spec.mixup else np.ones(images)
            self.cutmix_N = rng.beta(spec.cutmix, spec.cutmix, images) if spec.cutmix else np.ones(images)
        if spec.random_erasing:
            self.erase_N5 = seeded(seed, "erasing", epoch).random((images, 5), dtype=np.float32)

    def __call__(
        self, inputs_BCSS: Tensor, targets_BK: Tensor, positions_B: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Mix normalised pictures and their targets; a mixed target lies anywhere in [0, 1]."""
        if self.spec.mixup or self.spec.cutmix:
            inputs_BCSS, targets_BK = self._mix(inputs_BCSS, targets_BK, positions_B)
        if self.spec.random_erasing:
            draws_B5 = self.erase_N5[positions_B]
            low, high = self.spec.random_erasing_area
            areas_B = np.where(
                draws_B5[:, 0] < self.spec.random_erasing, low + (high - low) * draws_B5[:, 1], 0
            )
            ratios_B = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * draws_B5[:, 2])
            box_BSS, _ = _boxes(areas_B, ratios_B, draws_B5[:, 3:], inputs_BCSS.shape[-1])
            # 0 is the mean colour
            inputs_BCSS = inputs_BCSS.masked_fill(box_BSS[:, None].to(inputs_BCSS.device), 0)
        return inputs_BCSS, targets_BK

    def _mix(
        self, inputs_BCSS: Tensor, targets_BK: Tensor, positions_B: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Mix each picture with its successor in a random cyclic order of the batch.

        mixup (Zhang et al. 2018) blends the two, cutmix (Yun et al. 2019) pastes a rectangle of the
        other; with both, each picture takes one of them.
        """
        draws_B5 = self.draws_N5[positions_B]
        circle = np.argsort(draws_B5[:, 0], kind="stable")
        partner_B = np.empty_like(circle)
        partner_B[circle] = np.roll(circle, 1)
        mixed_B = draws_B5[:, 1] < self.spec.mix_fraction
        cut_B = mixed_B & ((draws_B5[:, 2] < 0.5) | (not self.spec.mixup)) & bool(self.spec.cutmix)
        blend_B = np.where(mixed_B & ~cut_B, self.mixup_N[positions_B], 1.0)
        areas_B = np.where(cut_B, 1 - self.cutmix_N[positions_B], 0.0)
        box_BSS, pasted_B = _boxes(areas_B, np.ones(len(areas_B)), draws_B5[:, 3:], inputs_BCSS.shape[-1])
        device, other = inputs_BCSS.device, torch.from_numpy(partner_B).to(inputs_BCSS.device)
        own_B = torch.from_numpy((blend_B * (1 - pasted_B)).astype(np.float32)).to(device)
        blend = torch.from_numpy(blend_B.astype(np.float32)).to(device)[:, None, None, None]
        others_BCSS = inputs_BCSS[other]
        blended = torch.lerp(others_BCSS, inputs_BCSS, blend)
        inputs_BCSS = torch.where(box_BSS[:, None].to(device), others_BCSS, blended)
        return inputs_BCSS, torch.lerp(targets_BK[other], targets_BK, own_B[:, None])


def _boxes(
    areas_B: npt.NDArray[np.float64],
    ratios_B: npt.NDArray[np.float64],
    centre_B2: npt.NDArray[np.float32],
    image_px: int,
) -> tuple[Tensor, npt.NDArray[np.float64]]:
    """One rectangle per image of that fraction of its area, anywhere inside: masks (B, S, S), exact fractions."""
    height_B = np.minimum(np.rint(image_px * np.sqrt(areas_B * ratios_B)), image_px)
    width_B = np.minimum(np.rint(image_px * np.sqrt(areas_B / ratios_B)), image_px)
    top_B = np.floor((image_px - height_B + 1) * centre_B2[:, 0])
    left_B = np.floor((image_px - width_B + 1) * centre_B2[:, 1])
    pixels = np.arange(image_px)
    rows = (pixels >= top_B[:, None]) & (pixels < (top_B + height_B)[:, None])
    columns = (pixels >= left_B[:, None]) & (pixels < (left_B + width_B)[:, None])
    return torch.from_numpy(rows[:, :, None] & columns[:, None, :]), height_B * width_B / image_px**2
