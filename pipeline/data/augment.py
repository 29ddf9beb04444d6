"""Random changes to a whole batch at once: one draw per image, a function of (seed, epoch, position).

Crop, flips and rotation form one affine map, so each picture is sampled once (`pipeline/data/warping.py`).
If only flips are requested, pixels are moved, not sampled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.colour import Colour
from pipeline.data.cropping import crop_sides
from pipeline.data.inputs import to_input
from pipeline.data.loading import Rows
from pipeline.data.warping import warp
from pipeline.seeding import seeded
from pipeline.spec import AugmentSpec, Normalisation

# B batch, C channels, H W pixels, S output pixels


class Augmentation:
    """The random changes of one epoch of one stream."""

    def __init__(self, spec: AugmentSpec, seed: int, epoch: int, images: int) -> None:
        self.spec = spec
        self.colour = Colour(spec, seed, epoch, images)
        # all draws of the epoch at once, so that the draw of a position depends on nothing else
        self.draws_N7 = seeded(seed, "augment", epoch).random((images, 7), dtype=np.float32)

    def __call__(
        self, images_BHWC: Tensor, positions_B: Rows, image_px: int, normalisation: Normalisation
    ) -> Tensor:
        """uint8 (B, H, W, C) -> normalised float32 (B, C, S, S), on the device of the images."""
        images_BHWC = self.colour(images_BHWC, positions_B)
        draws_B7 = self.draws_N7[positions_B]
        if self.spec.crop is None and self.spec.rotate_deg == 0:
            return to_input(self._flipped(images_BHWC, draws_B7), image_px, normalisation)
        rotates = self.spec.rotate_deg != 0
        return warp(images_BHWC, self.theta(draws_B7), image_px, normalisation, rotates=rotates)

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

    def _flipped(self, images_BHWC: Tensor, draws_B7: npt.NDArray[np.float32]) -> Tensor:
        for axis, draws_B, share in (
            (2, draws_B7[:, 0], self.spec.hflip),
            (1, draws_B7[:, 1], self.spec.vflip),
        ):
            if share > 0:
                chosen = torch.from_numpy(draws_B < share).to(images_BHWC.device)
                images_BHWC = torch.where(chosen[:, None, None, None], images_BHWC.flip(axis), images_BHWC)
        return images_BHWC
