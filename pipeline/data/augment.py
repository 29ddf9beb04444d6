"""Random changes to a whole batch at once: one draw per image, a function of (seed, epoch, position).

Crop, flips and rotation are one affine map, so each picture is sampled once (bilinear); outside the
picture is black. Where nothing but flips is asked for, pixels are moved, not sampled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.loading import Rows
from pipeline.data.seeding import seeded
from pipeline.spec import AugmentSpec

# B batch, C channels, H W pixels, S output pixels
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, in RGB of [0, 1]
STD = (0.229, 0.224, 0.225)
_CHUNK = 8  # images warped at a time: their samples stay in the cache


def to_input(images_BHWC: Tensor, image_px: int) -> Tensor:
    """Scoring's pictures: uint8 squashed to `image_px` (antialiased), normalised: (B, C, S, S) float32."""
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if images_BCHW.shape[-1] != image_px:
        size = (image_px, image_px)
        images_BCHW = functional.interpolate(images_BCHW.float(), size, mode="bilinear", antialias=True)
    return _normalised(images_BCHW.to(torch.float32, memory_format=torch.channels_last))


def as_pictures(inputs_BCHW: Tensor) -> npt.NDArray[np.uint8]:
    """A network's input back to pixels: (B, S, S, 3) uint8."""
    images_BHWC = inputs_BCHW.float().cpu().permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
    return (images_BHWC * 255).round().clamp(0, 255).byte().numpy()


class Augmentation:
    """The random changes of one epoch of one stream."""

    def __init__(self, spec: AugmentSpec, seed: int, epoch: int, images: int) -> None:
        self.spec = spec
        # every draw of the epoch at once, so that a position's draw depends on nothing else
        self.draws_N7 = seeded(seed, "augment", epoch).random((images, 7), dtype=np.float32)

    def __call__(self, images_BHWC: Tensor, positions_B: Rows, image_px: int) -> Tensor:
        """uint8 (B, H, W, C) -> normalised float32 (B, C, S, S), on the device of the images."""
        draws_B7 = self.draws_N7[positions_B]
        if self.spec.crop is None and self.spec.rotate_deg == 0:
            return to_input(self._flipped(images_BHWC, draws_B7), image_px)
        shrink = images_BHWC.shape[1] // image_px
        if shrink >= 2:  # bilinear sampling would skip pixels: average them first
            pooled = functional.avg_pool2d(images_BHWC.permute(0, 3, 1, 2).float(), shrink)
            images_BHWC = pooled.permute(0, 2, 3, 1)
        theta_B23 = torch.from_numpy(self.theta(draws_B7)).to(images_BHWC.device)
        return _normalised(_warp(images_BHWC, theta_B23, image_px))

    def theta(self, draws_B7: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, 2, 3): output coordinates in [-1, 1] -> where in the source picture to look."""
        hflip, vflip, angle, area, ratio, left, top = draws_B7.T
        flip_x = np.where(hflip < self.spec.hflip, -1.0, 1.0)
        flip_y = np.where(vflip < self.spec.vflip, -1.0, 1.0)
        radians = np.deg2rad((2 * angle - 1) * self.spec.rotate_deg)
        low, high = self.spec.crop or (1.0, 1.0)
        areas = low + (high - low) * area
        log_low, log_high = np.log(self.spec.crop_ratio) if self.spec.crop else (0.0, 0.0)
        ratios = np.exp(log_low + (log_high - log_low) * ratio)
        width, height = np.minimum(np.sqrt(areas * ratios), 1), np.minimum(np.sqrt(areas / ratios), 1)
        centre_x, centre_y = (1 - width) * (2 * left - 1), (1 - height) * (2 * top - 1)
        cos, sin = np.cos(radians), np.sin(radians)
        # the order of the eye: crop, then flip, then rotate; read from the output back to the source
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


def _warp(images_BHWC: Tensor, theta_B23: Tensor, image_px: int) -> Tensor:
    images = images_BHWC.shape[0]
    out = torch.empty((images, 3, image_px, image_px), device=images_BHWC.device).contiguous(
        memory_format=torch.channels_last
    )
    for start in range(0, images, _CHUNK if images_BHWC.device.type == "cpu" else images):
        chunk = slice(start, start + _CHUNK if images_BHWC.device.type == "cpu" else images)
        source = images_BHWC[chunk].permute(0, 3, 1, 2).to(torch.float32)
        shape = [source.shape[0], 3, image_px, image_px]
        grid = functional.affine_grid(theta_B23[chunk], shape, align_corners=False)
        out[chunk] = functional.grid_sample(source, grid, mode="bilinear", align_corners=False)
    return out


def _normalised(images_BCHW: Tensor) -> Tensor:
    shape = (1, 3, 1, 1)
    scale = torch.tensor([255 * s for s in STD], device=images_BCHW.device).view(shape)
    shift = torch.tensor([m / s for m, s in zip(MEAN, STD, strict=True)], device=images_BCHW.device).view(
        shape
    )
    return images_BCHW.div_(scale).sub_(shift)
