"""The source of a packed set's pixels: GPU memory if they fit, else the page cache, read ahead."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.loading import Rows, read_ahead
from pipeline.data.packed import PackedSet
from pipeline.data.transfer import pinned_bytes, to_device

# B batch, H W pixels, C channels, K labels, N positions of an epoch
_GPU_SHARE = 0.25  # of the memory that is free when training starts, for all processes of the GPU together
_READ_BYTES = 256 << 20  # at a time
PROCESSES_PER_GPU = "LABELGRID_PROCESSES_PER_GPU"  # set by whoever starts several beside each other


@dataclass(frozen=True)
class Batch:
    """Some images on a device: their span of the order they come in, pixels uint8 and targets float32."""

    span: slice
    images_BHWC: Tensor
    targets_BK: Tensor


class Droppable(Protocol):
    """What a GPU's memory holds a copy of."""

    def drop(self) -> bool:
        """Give it up; whether there was any."""
        ...


DROPPABLE: weakref.WeakSet[Droppable] = weakref.WeakSet()


class PixelCache:
    """The pixels and labels of a set for batches on a device.

    A CPU reads them from the page cache, which the first epoch fills where verifying the set has not. A
    separate array would hold them twice, to save 0.2 ms per batch. On a GPU they are resident where there
    is room; else each batch is read into pinned memory and copied while the one before is computed.
    """

    def __init__(self, packed: PackedSet, device: str) -> None:
        self.packed, self.device = packed, device
        self._labels_NK = to_device(packed.labels_NK, device)
        self.resident = _on_gpu(packed, device) if device != "cpu" else None
        DROPPABLE.add(self)

    def batches(self, order_N: Rows, spans: Sequence[slice]) -> Iterator[Batch]:
        """The batches of some spans of an order of rows; the order goes to the device once, for all of them."""
        rows_N = to_device(order_N, self.device)
        pixels = self._resident if self.resident is not None else self._read
        for span, images_BHWC in zip(spans, pixels(order_N, rows_N, spans), strict=True):
            yield Batch(span, images_BHWC, self.targets(rows_N[span]))

    def targets(self, rows_B: Tensor) -> Tensor:
        """(B, K) float32 of rows on the device."""
        return self._labels_NK[rows_B].float()

    def drop(self) -> bool:
        """Give the GPU's memory back; whether there was any. Pixels are read from then on."""
        if self.resident is None:
            return False
        torch.cuda.synchronize()  # another stream may still be reading what would be given to this one
        self.resident = None
        return True

    def _resident(self, order_N: Rows, rows_N: Tensor, spans: Sequence[slice]) -> Iterator[Tensor]:
        for i, span in enumerate(spans):
            if self.resident is None:  # dropped meanwhile
                yield from self._read(order_N, rows_N, spans[i:])
                return
            yield self.resident[rows_N[span]]

    def _read(self, order_N: Rows, _: Tensor, spans: Sequence[slice]) -> Iterator[Tensor]:
        for images_BHWC in read_ahead(self.packed, order_N, spans, self._gather):
            yield to_device(images_BHWC, self.device)

    def _gather(self, rows: Rows) -> npt.NDArray[np.uint8]:
        if self.device == "cpu":
            return self.packed.gather(rows)
        size = self.packed.size_px
        return self.packed.gather(rows, pinned_bytes((len(rows), size, size, 3)))


_kept: list[PixelCache] = []  # at most one


def pixel_cache(packed: PackedSet, device: str) -> PixelCache:
    """One cache for training and scoring, so that the pixels are on the GPU once."""
    if not _kept or _kept[0].packed is not packed or _kept[0].device != device:
        _kept.clear()  # before the next one looks how much memory is free
        _kept.append(PixelCache(packed, device))
    return _kept[0]


def drop_resident() -> bool:
    """Give up what a GPU holds and the host has too, for the rest of this process; whether there was any."""
    dropped = [each.drop() for each in list(DROPPABLE)]  # all of them
    return any(dropped)


def forget_pixels() -> None:
    """They are not needed now; the next call of `pixel_cache` looks anew whether there is room."""
    _kept.clear()


def fits_on_gpu(size: int, held: int = 0) -> bool:
    """Whether `size` bytes beside `held` ones of their kind leave enough for training, here and in processes beside."""
    torch.cuda.empty_cache()  # memory that torch caches and does not use counts as free
    free, _ = torch.cuda.mem_get_info()
    return size + held <= _GPU_SHARE * (free + held) / max(1, int(os.environ.get(PROCESSES_PER_GPU) or 1))


def _on_gpu(packed: PackedSet, device: str) -> Tensor | None:
    shape = (len(packed), packed.size_px, packed.size_px, 3)
    if not fits_on_gpu(int(np.prod(shape, dtype=np.int64))):
        return None
    try:
        resident = torch.empty(shape, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:  # a process beside was faster
        return None
    step = max(1, _READ_BYTES // int(np.prod(shape[1:])))
    for start in range(0, len(packed), step):
        rows = np.arange(start, min(start + step, len(packed)))
        resident[start : start + len(rows)] = to_device(packed.gather(rows), device)
    return resident
