"""Random changes to a whole batch at once: one draw per image, a function of (seed, epoch, position).

Crop, flips and rotation form one affine map, so each picture is sampled once (`pipeline/data/warping.py`).
If only flips are requested, pixels are moved, not sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.colour import Colour, drawn
from pipeline.data.cropping import crop_sides
from pipeline.data.inputs import on_threads, to_input
from pipeline.data.loading import Rows
from pipeline.data.transfer import EpochTable
from pipeline.data.warping import Maps, warp
from pipeline.seeding import seeded
from pipeline.spec import AugmentSpec, Preprocessing

# B batch, C channels, H W pixels, S output pixels


class Augmentation:
    """The random changes of one epoch of one stream, whose batches are `spans` of its positions.

    With `positions_N`, of these in their order: a process that makes some pictures of the epoch draws what one
    that makes all of them would.
    """

    def __init__(
        self,
        spec: AugmentSpec,
        seed: int,
        epoch: int,
        spans: Sequence[slice],
        positions_N: Rows | None = None,
    ) -> None:
        self.spec = spec
        self.colour = Colour(spec, seed, epoch, spans, positions_N)
        # all draws of the epoch at once, so that the draw of a position depends on nothing else
        self.draws_N7 = drawn(seeded(seed, "augment", epoch), 7, spans, positions_N)
        self._maps: Maps | None = None
        self._flips_N2 = EpochTable(self.draws_N7[:, :2] < np.array([spec.hflip, spec.vflip], np.float32))

    def __call__(
        self, images_BHWC: Tensor, span: slice, image_px: int, preprocessing: Preprocessing
    ) -> Tensor:
        """uint8 (B, H, W, C) -> normalised float32 (B, C, S, S), on the device of the images."""
        images_BHWC = self.colour(images_BHWC, span)
        if self.spec.crop is None and self.spec.rotate_deg == 0:
            return to_input(self._flipped(images_BHWC, span), image_px, preprocessing)
        source_px = images_BHWC.shape[1]
        kind = source_px, image_px, preprocessing.interpolation
        if self._maps is None or self._maps.kind != kind:
            self._maps = Maps(self.theta(self.draws_N7), *kind, rotates=self.spec.rotate_deg != 0)
        return warp(images_BHWC, self._maps, span, preprocessing)

    def theta(self, draws_B7: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, 2, 3): output coordinates in [-1, 1] -> where in the source picture to look."""
        hflip, vflip, angle, area, ratio, left, top = draws_B7.T
        flip_x = np.where(hflip < self.spec.hflip, -1.0, 1.0)
        flip_y = np.where(vflip < self.spec.vflip, -1.0, 1.0)
        radians = np.deg2rad((2 * angle - 1) * self.spec.rotate_deg)
        width = height = np.ones(len(draws_B7))
        if self.spec.crop is not None:
            width, height, is_central = crop_sides(self.spec.crop, self.spec.crop_ratio, area, ratio)
            left, top = np.where(is_central, 0.5, left), np.where(is_central, 0.5, top)
        centre_x, centre_y = (1 - width) * (2 * left - 1), (1 - height) * (2 * top - 1)
        cos, sin = np.cos(radians), np.sin(radians)
        # as seen in the picture: crop, then flip, then rotate; the map leads from the output back to the source
        theta = np.empty((len(draws_B7), 2, 3), np.float32)
        theta[:, 0] = np.stack([width * flip_x * cos, -width * flip_x * sin, centre_x], axis=1)
        theta[:, 1] = np.stack([height * flip_y * sin, height * flip_y * cos, centre_y], axis=1)
        return theta

    def _flipped(self, images_BHWC: Tensor, span: slice) -> Tensor:
        axes = [i for i, share in enumerate((self.spec.hflip, self.spec.vflip)) if share > 0]
        if not axes:
            return images_BHWC
        flips_B2 = self._flips_N2.at(span, images_BHWC.device)
        if on_threads(images_BHWC):
            for i in axes:  # across, then down
                flip_B = flips_B2[:, i, None, None, None]
                images_BHWC = torch.where(flip_B, images_BHWC.flip(2 - i), images_BHWC)
            return images_BHWC
        # one pass over the memory: each pixel is taken from its place
        images, size = images_BHWC.shape[:2]
        pixels_S = torch.arange(size, device=images_BHWC.device)
        across_BS, down_BS = (
            torch.where(flips_B2[:, i, None], size - 1 - pixels_S, pixels_S) for i in (0, 1)
        )
        which_B = torch.arange(images, device=images_BHWC.device)
        return images_BHWC[which_B[:, None, None], down_BS[:, :, None], across_BS[:, None, :]]
