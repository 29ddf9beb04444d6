"""Pixels to what a network takes: sized, normalised; on a CPU picture by picture, on threads."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.transfer import to_device
from pipeline.spec import Preprocessing

# B batch, C channels, H W pixels, S output pixels
_CHUNK = 4  # images a thread takes at a time

cv2: Any = None  # an install for inference alone has none
with contextlib.suppress(ImportError):
    import cv2

    cv2.setNumThreads(1)  # this module brings its own threads: one picture is too small to divide


def to_input(images_BHWC: Tensor, image_px: int, preprocessing: Preprocessing) -> Tensor:
    """Pictures for scoring: uint8 (B, H, W, C) squashed to `image_px` (antialiased), normalised: (B, C, S, S)."""
    source_px, interpolation = images_BHWC.shape[1], preprocessing.interpolation
    may_enlarge = image_px > source_px and interpolation == "bilinear"  # OpenCV's bicubic is another one
    if on_threads(images_BHWC) and (image_px == source_px or may_enlarge):
        return each(images_BHWC, image_px, functools.partial(_enlarged, table_of(preprocessing)))
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if source_px != image_px:
        size = (image_px, image_px)
        images_BCHW = functional.interpolate(images_BCHW.float(), size, mode=interpolation, antialias=True)
        if interpolation == "bicubic":  # it overshoots beside edges
            images_BCHW.clamp_(0, 255)
    elif not on_threads(images_BHWC):  # one pass over the memory: it casts what it reads
        scale, shift = _affine(images_BHWC.device, preprocessing)
        return torch.addcmul(shift, images_BCHW, scale)
    return normalised(images_BCHW.to(torch.float32, memory_format=torch.channels_last), preprocessing)


def on_threads(images_BHWC: Tensor) -> bool:
    """Whether threads make these pictures one by one with OpenCV; on a GPU torch makes the batch."""
    return images_BHWC.device.type == "cpu"


def as_pictures(inputs_BCHW: Tensor, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """A network's input back to pixels: (B, S, S, 3) uint8."""
    mean, std = (torch.tensor(values) for values in preprocessing[:2])
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
def table_of(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Pixel value -> normalised value, by channel (256, 1, 3): one look-up casts and normalises."""
    table = (np.arange(256)[:, None] / 255 - preprocessing.mean) / preprocessing.std
    return table.astype(np.float32)[:, None, :]


def normalised(images_BCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Float32 pixel values in [0, 255], normalised in place."""
    scale, shift = _constants(images_BCHW.device, preprocessing)
    return images_BCHW.div_(scale).sub_(shift)


@functools.cache
def _constants(device: torch.device, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    mean, std = (to_device(torch.tensor(values).view(1, 3, 1, 1), device) for values in preprocessing[:2])
    return 255 * std, mean / std


@functools.cache
def _affine(device: torch.device, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """What `normalised` computes, as pixel * scale + shift."""
    scale, shift = _constants(device, preprocessing)
    return 1 / scale, -shift


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="augment")


def _enlarged(table: npt.NDArray[np.float32], _: int, image_HWC: Any, out_SSC: Any) -> None:
    if cv2 is None:
        looked_up = torch.from_numpy(table[image_HWC, 0, np.arange(3)]).permute(2, 0, 1)[None]
        if image_HWC.shape != out_SSC.shape:  # equal to OpenCV's within rounding
            looked_up = functional.interpolate(looked_up, out_SSC.shape[:2], mode="bilinear")
        out_SSC[:] = looked_up[0].permute(1, 2, 0).numpy()
    elif image_HWC.shape == out_SSC.shape:
        cv2.LUT(image_HWC, table, dst=out_SSC)
    else:
        cv2.resize(cv2.LUT(image_HWC, table), out_SSC.shape[:2], dst=out_SSC, interpolation=cv2.INTER_LINEAR)
