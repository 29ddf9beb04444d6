"""Sides of random crops, distributed as torchvision's RandomResizedCrop draws them on a square picture."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

# B batch, A grid of areas
Floats = npt.NDArray[np.float64]
Pair = tuple[float, float]
_ATTEMPTS = 10  # torchvision's, before it takes the fallback
_GRID = 4097  # areas at which the distribution is tabulated; between them it is nearly linear


def crop_sides(
    scale: Pair, ratio: Pair, area_draws_B: npt.NDArray[np.float32], ratio_draws_B: npt.NDArray[np.float32]
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Widths and heights (B,) of crops, in (0, 1] of the picture's side, and which of them are central.

    `scale` and `ratio` are [smallest, largest] area and width / height; draws are uniform in [0, 1).
    torchvision draws an area (uniform) and a ratio (uniform in its logarithm) up to ten times, until both
    sides fit, then takes the largest central crop of the nearest ratio. Here one draw each gives the same
    distribution: by the inverse of the area's, then uniformly over the ratios that fit at this area.
    """
    areas_A, cumulative_A, rejected = _areas(scale, ratio)
    area_draws_B, ratio_draws_B = area_draws_B.astype(np.float64), ratio_draws_B.astype(np.float64)
    falls_back_B = area_draws_B < rejected
    rest_B = (area_draws_B - rejected) / max(1 - rejected, 1e-12)
    areas_B = np.interp(rest_B, cumulative_A, areas_A)
    low_B, high_B = _fitting(areas_B, ratio)
    ratios_B = np.exp(low_B + (high_B - low_B) * ratio_draws_B)
    nearest = min(max(1.0, ratio[0]), ratio[1])
    width_B = np.where(falls_back_B, min(1.0, nearest), np.sqrt(areas_B * ratios_B))
    height_B = np.where(falls_back_B, min(1.0, 1 / nearest), np.sqrt(areas_B / ratios_B))
    return np.minimum(width_B, 1), np.minimum(height_B, 1), falls_back_B  # rounding may pass 1


def _fitting(areas: Floats, ratio: Pair) -> tuple[Floats, Floats]:
    """Lowest and highest logarithm of the ratios at which both sides of these areas are at most 1."""
    low, high = np.maximum(math.log(ratio[0]), np.log(areas)), np.minimum(math.log(ratio[1]), -np.log(areas))
    return low, np.maximum(high, low)


@functools.cache
def _areas(scale: Pair, ratio: Pair) -> tuple[Floats, Floats, float]:
    """Areas (A,), the fraction of the accepted crops below each, and the probability of the fallback."""
    areas_A = np.linspace(*scale, _GRID)
    spread = math.log(ratio[1]) - math.log(ratio[0])
    low_A, high_A = _fitting(areas_A, ratio)
    if spread > 0:
        accepted_A = (high_A - low_A) / spread
    else:  # one ratio: it fits, or it does not
        accepted_A = (abs(math.log(ratio[0])) <= -np.log(areas_A)).astype(np.float64)
    cumulative_A = np.concatenate([[0.0], np.cumsum((accepted_A[1:] + accepted_A[:-1]) / 2)])
    probability = float(cumulative_A[-1] / (_GRID - 1))
    if cumulative_A[-1] > 0:
        cumulative_A /= cumulative_A[-1]
    return areas_A, cumulative_A, (1 - probability) ** _ATTEMPTS
