"""The source of a packed set's pixels: GPU memory if they fit, else the page cache, read ahead."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loading import Batch
from pipeline.data.packed import PackedSet

_GPU_SHARE = 0.25  # of the memory that is free when training starts
_ROWS = 2048  # read at a time


class PixelCache:
    """The pixels of batches on a device.

    A CPU reads them from the page cache, which opening the set has filled. A separate array would hold
    them twice, to save 0.2 ms per batch.
    """

    def __init__(self, packed: PackedSet, device: str) -> None:
        self.device = device
        self.resident = _on_gpu(packed) if device == "cuda" else None

    @property
    def read(self) -> bool:
        """Whether batches must come with their pixels."""
        return self.resident is None

    def of(self, batch: Batch) -> Tensor:
        """uint8 (B, H, W, C) on the device."""
        if self.resident is not None:
            return self.resident[torch.from_numpy(batch.rows_B).to(self.device)]
        return torch.from_numpy(batch.images_BHWC).to(self.device, non_blocking=True)


@functools.lru_cache(maxsize=1)
def pixel_cache(packed: PackedSet, device: str) -> PixelCache:
    """One cache for training and scoring, so that the pixels are on the GPU once."""
    return PixelCache(packed, device)


def fits_on_gpu(size: int) -> bool:
    """Whether `size` bytes leave enough GPU memory for the training itself."""
    torch.cuda.empty_cache()  # memory that torch caches and does not use counts as free
    free, _ = torch.cuda.mem_get_info()
    return size <= _GPU_SHARE * free


def _on_gpu(packed: PackedSet) -> Tensor | None:
    shape = (len(packed), packed.size_px, packed.size_px, 3)
    if not fits_on_gpu(int(np.prod(shape, dtype=np.int64))):
        return None
    resident = torch.empty(shape, dtype=torch.uint8, device="cuda")
    for start in range(0, len(packed), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(packed)))
        resident[start : start + len(rows)] = torch.from_numpy(packed.gather(rows))
    return resident
