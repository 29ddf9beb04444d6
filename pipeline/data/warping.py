"""Pictures sampled at an affine map: bilinear, averaged first where they shrink. Outside is black.

On a CPU, threads write each picture straight to its place in the batch, through OpenCV; on a GPU, torch
samples the batch. For the same map the two agree within 0.02 of 255.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.inputs import each, normalised, table_of
from pipeline.data.loading import Rows
from pipeline.spec import Normalisation

# B batch, C channels, H W pixels, S output pixels


def warp(
    images_BHWC: Tensor, theta_B23: npt.NDArray[np.float32], image_px: int, normalisation: Normalisation
) -> Tensor:
    """uint8 pictures sampled where `theta` (of `Augmentation.theta`) says, normalised: (B, C, S, S) float32."""
    source_px = images_BHWC.shape[1]
    # bilinear sampling skips pixels where it shrinks: whole blocks of them are averaged first
    step_B = np.linalg.norm(theta_B23[:, :, :2], axis=2).min(axis=1) * source_px / image_px
    block_B = np.maximum(np.rint(step_B), 1).astype(np.int64)
    on_device = _warp_on_cpu if images_BHWC.device.type == "cpu" else _warp_by_torch
    return on_device(images_BHWC, theta_B23, block_B, image_px, normalisation)


def _warp_on_cpu(
    images_BHWC: Tensor,
    theta_B23: npt.NDArray[np.float32],
    block_B: Rows,
    image_px: int,
    normalisation: Normalisation,
) -> Tensor:
    matrices_B23 = _in_pixels(theta_B23, images_BHWC.shape[1] / block_B, image_px)
    table = table_of(normalisation)
    black = tuple(float(value) for value in table[0, 0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def sample(i: int, image_HWC: Any, out_SSC: Any) -> None:
        source_HWC = cv2.LUT(image_HWC, table)
        if block_B[i] > 1:
            source_HWC = _averaged(source_HWC, int(block_B[i]))
        size = (image_px, image_px)
        cv2.warpAffine(source_HWC, matrices_B23[i], size, dst=out_SSC, flags=flags, borderValue=black)

    return each(images_BHWC, image_px, sample)


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
    images_BHWC: Tensor,
    theta_B23: npt.NDArray[np.float32],
    block_B: Rows,
    image_px: int,
    normalisation: Normalisation,
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
    return normalised(out, normalisation)
