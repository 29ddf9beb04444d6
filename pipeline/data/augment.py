"""Random changes to a whole batch at once: one draw per image, a function of (seed, epoch, position).

Crop, flips and rotation form one affine map, so each picture is sampled once (bilinear; averaged first
where it shrinks). Pixels outside the picture are black. If only flips are requested, pixels are moved,
not sampled. On a CPU, threads write each picture straight to its place in the batch, through OpenCV; on
a GPU, torch samples the batch. For the same draw the two agree within 0.02 of 255.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.colour import Colour
from pipeline.data.cropping import crop_sides
from pipeline.data.loading import Rows
from pipeline.seeding import seeded
from pipeline.spec import AugmentSpec

# B batch, C channels, H W pixels, S output pixels
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, in RGB of [0, 1]
STD = (0.229, 0.224, 0.225)
_CHUNK = 4  # images a thread takes at a time
# pixel value -> normalised value, by channel: one look-up casts and normalises
_TABLE = ((np.arange(256)[:, None] / 255 - MEAN) / STD).astype(np.float32)[:, None, :]
_BLACK = tuple(float(value) for value in _TABLE[0, 0])

cv2.setNumThreads(1)  # this module brings its own threads: one picture is too small to divide


def to_input(images_BHWC: Tensor, image_px: int) -> Tensor:
    """Pictures for scoring: uint8 (B, H, W, C) squashed to `image_px` (antialiased), normalised: (B, C, S, S)."""
    source_px = images_BHWC.shape[1]
    if images_BHWC.device.type == "cpu" and image_px >= source_px:
        return _each(images_BHWC, image_px, _enlarged)
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if source_px != image_px:
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
        self.colour = Colour(spec, seed, epoch, images)
        # all draws of the epoch at once, so that the draw of a position depends on nothing else
        self.draws_N7 = seeded(seed, "augment", epoch).random((images, 7), dtype=np.float32)

    def __call__(self, images_BHWC: Tensor, positions_B: Rows, image_px: int) -> Tensor:
        """uint8 (B, H, W, C) -> normalised float32 (B, C, S, S), on the device of the images."""
        images_BHWC = self.colour(images_BHWC, positions_B)
        draws_B7 = self.draws_N7[positions_B]
        if self.spec.crop is None and self.spec.rotate_deg == 0:
            return to_input(self._flipped(images_BHWC, draws_B7), image_px)
        return warp(images_BHWC, self.theta(draws_B7), image_px)

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


def warp(images_BHWC: Tensor, theta_B23: npt.NDArray[np.float32], image_px: int) -> Tensor:
    """uint8 pictures sampled where `theta` (of `Augmentation.theta`) says, normalised: (B, C, S, S) float32."""
    source_px = images_BHWC.shape[1]
    # bilinear sampling skips pixels where it shrinks: whole blocks of them are averaged first
    step_B = np.linalg.norm(theta_B23[:, :, :2], axis=2).min(axis=1) * source_px / image_px
    block_B = np.maximum(np.rint(step_B), 1).astype(np.int64)
    on_device = _warp_on_cpu if images_BHWC.device.type == "cpu" else _warp_by_torch
    return on_device(images_BHWC, theta_B23, block_B, image_px)


def _warp_on_cpu(
    images_BHWC: Tensor, theta_B23: npt.NDArray[np.float32], block_B: Rows, image_px: int
) -> Tensor:
    matrices_B23 = _in_pixels(theta_B23, images_BHWC.shape[1] / block_B, image_px)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def sample(i: int, image_HWC: Any, out_SSC: Any) -> None:
        source_HWC = cv2.LUT(image_HWC, _TABLE)
        if block_B[i] > 1:
            source_HWC = _averaged(source_HWC, int(block_B[i]))
        size = (image_px, image_px)
        cv2.warpAffine(source_HWC, matrices_B23[i], size, dst=out_SSC, flags=flags, borderValue=_BLACK)

    return _each(images_BHWC, image_px, sample)


def _each(images_BHWC: Tensor, image_px: int, place: Callable[[int, Any, Any], None]) -> Tensor:
    """A batch on the CPU: `place(i, uint8 picture, target)` writes each picture, on all threads."""
    source_BHWC = images_BHWC.numpy()
    out_BSSC = np.empty((len(source_BHWC), image_px, image_px, 3), np.float32)

    def some(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(source_BHWC))):
            place(i, source_BHWC[i], out_BSSC[i])

    list(_threads(torch.get_num_threads()).map(some, range(0, len(source_BHWC), _CHUNK)))
    return torch.from_numpy(out_BSSC).permute(0, 3, 1, 2)


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="augment")


def _enlarged(i: int, image_HWC: Any, out_SSC: Any) -> None:
    if image_HWC.shape == out_SSC.shape:
        cv2.LUT(image_HWC, _TABLE, dst=out_SSC)
    else:
        cv2.resize(cv2.LUT(image_HWC, _TABLE), out_SSC.shape[:2], dst=out_SSC, interpolation=cv2.INTER_LINEAR)


def _averaged(image_HWC: Any, block: int) -> Any:
    """Means of blocks of pixels; border pixels are repeated where the last block is incomplete."""
    missing = -image_HWC.shape[0] % block
    padded = cv2.copyMakeBorder(image_HWC, 0, missing, 0, missing, cv2.BORDER_REPLICATE)
    size = (padded.shape[1] // block, padded.shape[0] // block)
    return cv2.resize(padded, size, interpolation=cv2.INTER_AREA)


def _in_pixels(
    theta_B23: npt.NDArray[np.float32], source_px_B: npt.NDArray[np.float64], image_px: int
) -> npt.NDArray[np.float64]:
    """`theta` from [-1, 1] to pixel centres: (column, row) of the output -> of the source."""
    matrices_B23 = theta_B23.astype(np.float64)
    matrices_B23[:, :, :2] *= (source_px_B / image_px)[:, None, None]
    middle = (image_px - 1) / 2
    shift_B2 = (matrices_B23[:, :, 2] + 1) * source_px_B[:, None] / 2 - 0.5
    matrices_B23[:, :, 2] = shift_B2 - middle * matrices_B23[:, :, :2].sum(axis=2)
    return matrices_B23


def _warp_by_torch(
    images_BHWC: Tensor, theta_B23: npt.NDArray[np.float32], block_B: Rows, image_px: int
) -> Tensor:
    images, source_px = images_BHWC.shape[:2]
    device = images_BHWC.device
    out = torch.empty((images, 3, image_px, image_px), device=device, memory_format=torch.channels_last)
    for block in np.unique(block_B):
        chosen = torch.from_numpy(np.flatnonzero(block_B == block)).to(device)
        source = images_BHWC[chosen].permute(0, 3, 1, 2).float()
        theta = theta_B23[block_B == block].copy()
        if block > 1:
            missing = int(-source_px % block)
            source = functional.pad(source, (0, missing, 0, missing), mode="replicate")
            source = functional.avg_pool2d(source, int(block))
            # the padding widened the picture, and with it what [-1, 1] spans
            wider = source_px / (source_px + missing)
            theta[:, :, 2] = (theta[:, :, 2] + 1) * wider - 1
            theta[:, :, :2] *= wider
        shape = [len(source), 3, image_px, image_px]
        grid = functional.affine_grid(torch.from_numpy(theta).to(device), shape, align_corners=False)
        out[chosen] = functional.grid_sample(source, grid, mode="bilinear", align_corners=False)
    return _normalised(out)


def _normalised(images_BCHW: Tensor) -> Tensor:
    scale, shift = _constants(images_BCHW.device)
    return images_BCHW.div_(scale).sub_(shift)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    std, mean = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (STD, MEAN))
    return 255 * std, mean / std
