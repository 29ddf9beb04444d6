"""Pillow's resize with torch's operators: bit for bit what wrangle makes of RGB pixels, in an exported program.

Source: Pillow's `Image.resize(..., reducing_gap=2.0)`, `src/libImaging/Reduce.c` and `Resample.c`. It first takes
means of blocks where the picture is more than four times too large, then weighs pixels by a triangle (bilinear) or by
Keys' cubic with a = -0.5 (bicubic): along one direction, then along the other, with weights of 22 bits and a rounding
to 8 bits after each. Which direction comes first depends on Pillow's version and on the picture; the rule was found by
trying sizes, and a test tries them again.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.decoding import Preparation
from pipeline.data.kernels import REACH, kernel

_BITS = 2.0**22  # of a weight
_BLOCK_BITS = 2.0**24  # of a block's reciprocal

# H W pixels, S output pixels, N = 4 S + 8 R blocks with R of REACH. No length depends on values, so that one program
# takes any size: blocks that are not there are empty.


def resized(images_BHWC: Tensor, preparation: Preparation) -> Tensor:
    """(B, 3, S, S) float32 of whole values, from uint8 (B, H, W, 3) of any size, as `preparation` says."""
    side, is_cropped = preparation.size_px, preparation.resize == "crop"
    height, width = (torch.scalar_tensor(n, dtype=torch.int64) for n in images_BHWC.shape[1:3])
    shorter = torch.minimum(height, width)
    rows, columns = (
        _Axis(length, shorter if is_cropped else length, side, preparation.interpolation)
        for length in (height, width)
    )
    sums = columns.sums(images_BHWC.permute(0, 3, 1, 2).to(torch.int32))
    sums = rows.sums(sums.transpose(2, 3)).transpose(2, 3).to(torch.float64)
    count_NN = (rows.counts()[:, None] * columns.counts()).to(torch.float64)
    blocks = (sums + torch.floor(count_NN / 2)) * torch.floor(_BLOCK_BITS / count_NN)
    pixels = torch.floor(blocks / _BLOCK_BITS)
    weights = columns.weights(), rows.weights()
    turned = _columns_first(rows, columns, side)
    pixels = torch.where(turned, pixels.transpose(2, 3), pixels)
    first, second = torch.where(turned, weights[1], weights[0]), torch.where(turned, weights[0], weights[1])
    pixels = _rounded(second @ _rounded(pixels @ first.transpose(0, 1)))
    return torch.where(turned, pixels.transpose(2, 3), pixels).to(torch.float32)


def _columns_first(rows: _Axis, columns: _Axis, side: int) -> Tensor:
    """Whether the columns of the picture are weighed first, then its rows."""
    if not _may_begin_with_columns():
        return torch.tensor(False)
    reduced = (rows.factor > 1) | (columns.factor > 1)
    height = torch.where(reduced, rows.blocks, rows.length)
    width = torch.where(reduced, columns.blocks, columns.length)
    return (height > side) & (height - side > 2 * (width - side))


@functools.cache
def _may_begin_with_columns() -> bool:
    """Whether the Pillow of this process does for tall pictures; older ones never do."""
    picture_HW = np.random.default_rng(0).integers(0, 256, (96, 24), np.uint8)
    whole = Image.fromarray(picture_HW).resize((16, 16), Image.Resampling.BILINEAR)
    upright = Image.fromarray(picture_HW).resize((24, 16), Image.Resampling.BILINEAR)
    steps = upright.resize((16, 16), Image.Resampling.BILINEAR)
    return np.array_equal(np.asarray(whole), np.asarray(steps))


def _rounded(pixels: Tensor) -> Tensor:
    return torch.floor((pixels + _BITS / 2) / _BITS).clamp(0, 255)


class _Axis:
    """One direction of a resize: of `length` pixels the middle `extent` become `side`."""

    def __init__(self, length: Tensor, extent: Tensor, side: int, interpolation: str) -> None:
        self.length, self.extent, self.side = length, extent, side
        self.interpolation, self.reach = interpolation, REACH[interpolation]
        self.factor = _floor(extent, 2 * side).clamp(min=1)
        # what the filter may reach beyond the middle: half of a scale, or one and a half; some pixels where it enlarges
        beyond = (extent * (2 * self.reach - 1)).clamp(min=2 * self.reach * side)
        self.first = _floor((length - extent) * side - beyond, 2 * side).clamp(min=0)
        self.last = torch.minimum(length, -_floor(-(length + extent) * side - beyond, 2 * side))
        # less than 4 S pixels are left as they are; of more, at most 3 S blocks are made
        self.block = torch.arange(4 * side + 8 * self.reach)
        self.blocks = -_floor(self.first - self.last, self.factor)
        self._starts = torch.minimum(self.first + self.block * self.factor, self.last)
        self._ends = torch.minimum(self._starts + self.factor, self.last)

    def sums(self, pixels_BCxL: Tensor) -> Tensor:
        """Sums of the blocks along the last dimension: (B, C, x, N).

        A running sum may pass 32 bits, and its differences are right all the same; those of a block fit where it has
        less than 8 million pixels.
        """
        upto = torch.cumsum(pixels_BCxL, 3, dtype=torch.int32)
        ends = upto.index_select(3, (self._ends - 1).clamp(min=0))
        starts = upto.index_select(3, (self._starts - 1).clamp(min=0))
        return ends - starts * (self._starts > 0).to(torch.int32)

    def counts(self) -> Tensor:
        """(N,): pixels of each block, the last one may have fewer; 1 where there is none."""
        return (self._ends - self._starts).clamp(min=1)

    def weights(self) -> Tensor:
        """(S, N): the triangle or cubic of each output pixel, in 22 bits."""
        margin, factor = (self.length - self.extent).to(torch.float64) / 2, self.factor.to(torch.float64)
        # Pillow hands the box to its C code in single precision
        begin, end = (
            ((margin + beyond - self.first) / factor).float().double() for beyond in (0, self.extent)
        )
        scale = (end - begin) / self.side
        width = scale.clamp(min=1.0)
        reach = width * self.reach
        center_S1 = (begin + (torch.arange(self.side).to(torch.float64) + 0.5) * scale)[:, None]
        first_S1, last_S1 = torch.floor(center_S1 - reach + 0.5), torch.floor(center_S1 + reach + 0.5)
        block_N = self.block.to(torch.float64)
        inside = (block_N >= first_S1) & (block_N < last_S1) & (self._ends > self._starts)
        # by reciprocals, as Pillow computes it: a last bit decides what is rounded up
        distance_SN = ((block_N - center_S1 + 0.5) * (1 / width)).abs()
        weights = kernel(distance_SN, self.interpolation) * inside.to(torch.float64)
        parts = weights * (1 / weights.sum(1, keepdim=True)) * _BITS
        return torch.where(parts < 0, torch.ceil(parts - 0.5), torch.floor(parts + 0.5))


def _floor(above: Tensor, below: int | Tensor) -> Tensor:
    return torch.div(above, below, rounding_mode="floor")
