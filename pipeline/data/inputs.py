"""Pixels to what a network takes: sized, normalised; on a CPU picture by picture, on threads."""

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

from pipeline.spec import Normalisation

# B batch, C channels, H W pixels, S output pixels
_CHUNK = 4  # images a thread takes at a time

cv2.setNumThreads(1)  # this module brings its own threads: one picture is too small to divide


def to_input(images_BHWC: Tensor, image_px: int, normalisation: Normalisation) -> Tensor:
    """Pictures for scoring: uint8 (B, H, W, C) squashed to `image_px` (antialiased), normalised: (B, C, S, S)."""
    source_px = images_BHWC.shape[1]
    if images_BHWC.device.type == "cpu" and image_px >= source_px:
        return each(images_BHWC, image_px, functools.partial(_enlarged, table_of(normalisation)))
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if source_px != image_px:
        size = (image_px, image_px)
        images_BCHW = functional.interpolate(images_BCHW.float(), size, mode="bilinear", antialias=True)
    return normalised(images_BCHW.to(torch.float32, memory_format=torch.channels_last), normalisation)


def as_pictures(inputs_BCHW: Tensor, normalisation: Normalisation) -> npt.NDArray[np.uint8]:
    """A network's input back to pixels: (B, S, S, 3) uint8."""
    mean, std = (torch.tensor(values) for values in normalisation)
    images_BHWC = inputs_BCHW.float().cpu().permute(0, 2, 3, 1) * std + mean
    return (images_BHWC * 255).round().clamp(0, 255).byte().numpy()


def each(images_BHWC: Tensor, image_px: int, place: Callable[[int, Any, Any], None]) -> Tensor:
    """A batch on the CPU: `place(i, uint8 picture, target)` writes each picture, on all threads."""
    source_BHWC = images_BHWC.numpy()
    out_BSSC = np.empty((len(source_BHWC), image_px, image_px, 3), np.float32)

    def some(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(source_BHWC))):
            place(i, source_BHWC[i], out_BSSC[i])

    list(_threads(torch.get_num_threads()).map(some, range(0, len(source_BHWC), _CHUNK)))
    return torch.from_numpy(out_BSSC).permute(0, 3, 1, 2)


@functools.cache
def table_of(normalisation: Normalisation) -> npt.NDArray[np.float32]:
    """Pixel value -> normalised value, by channel (256, 1, 3): one look-up casts and normalises."""
    table = (np.arange(256)[:, None] / 255 - normalisation.mean) / normalisation.std
    return table.astype(np.float32)[:, None, :]


def normalised(images_BCHW: Tensor, normalisation: Normalisation) -> Tensor:
    """Float32 pixel values in [0, 255], normalised in place."""
    scale, shift = _constants(images_BCHW.device, normalisation)
    return images_BCHW.div_(scale).sub_(shift)


@functools.cache
def _constants(device: torch.device, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in normalisation)
    return 255 * std, mean / std


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="augment")


def _enlarged(table: npt.NDArray[np.float32], _: int, image_HWC: Any, out_SSC: Any) -> None:
    if image_HWC.shape == out_SSC.shape:
        cv2.LUT(image_HWC, table, dst=out_SSC)
    else:
        cv2.resize(cv2.LUT(image_HWC, table), out_SSC.shape[:2], dst=out_SSC, interpolation=cv2.INTER_LINEAR)
