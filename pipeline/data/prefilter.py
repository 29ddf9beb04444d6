"""What a picture is filtered by, before single bilinear samples of it are as sharp as a resized one."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from pipeline.data.kernels import REACH, kernel

# B batch, A 2 axes, T taps, F frequencies, N steps of the table, P places
Floats = npt.NDArray[np.float64]
_PER_OCTAVE = 32  # steps of the table; filters in between are interpolated
_PLACES = 32  # of a sample between two pixels


def prefilters(steps_BA: Floats, interpolation: str) -> Floats:
    """Symmetric filters (B, A, T) for sampling at these steps, in source pixels; bilinear ones change nothing up to 1.

    Resizing with antialiasing weighs pixels by a triangle of half-width `step` around each sample, or by a cubic of
    twice that. A bilinear sample is a triangle of half-width 1. The filter makes up for the difference: a picture that
    is filtered and then sampled bilinearly has as much power at each frequency, in its samples and in their
    differences, as one that is weighed by the wide triangle or cubic. A triangle at a whole step is the same.
    """
    radius = max(radius_of(float(steps_BA.max()), interpolation), 1)
    place_BA = np.log2(np.maximum(steps_BA, 1)) * _PER_OCTAVE
    below_BA = np.floor(place_BA).astype(np.int64)
    wanted_N, which = np.unique(np.stack([below_BA, below_BA + 1]), return_inverse=True)
    table_NT = np.zeros((len(wanted_N), 2 * radius + 1))
    for n, number in enumerate(wanted_N):
        # the one above the largest step may reach farther: it has no part in the result
        taps_T = _filter(int(number), interpolation)
        reach = min(len(taps_T) // 2, radius)
        table_NT[n, radius - reach : radius + reach + 1] = taps_T[len(taps_T) // 2 - reach :][: 2 * reach + 1]
    below, above = which.reshape(2, *steps_BA.shape)
    part_BA1 = (place_BA - below_BA)[..., None]
    found: Floats = (1 - part_BA1) * table_NT[below] + part_BA1 * table_NT[above]
    return found


def radius_of(step: float, interpolation: str) -> int:
    """How far the filter for a step reaches, in source pixels; those of the table next to it reach no farther."""
    if step <= 1 and interpolation == "bilinear":
        return 0
    number = math.ceil(math.log2(max(step, 1)) * _PER_OCTAVE)
    return math.ceil(REACH[interpolation] * 2 ** (number / _PER_OCTAVE)) + 1


@functools.cache
def _filter(number: int, interpolation: str) -> Floats:
    """The filter for the step 2 ** (number / 32), by weighed least squares: it reaches a pixel beyond the kernel."""
    if number == 0 and interpolation == "bilinear":
        return np.ones(1)
    step = 2 ** (number / _PER_OCTAVE)
    reach = math.ceil(REACH[interpolation] * step) + 1
    count = max(128, 8 * reach)
    frequency_F = (np.arange(count) + 0.5) / (2 * count)  # cycles a source pixel
    wide_F, _ = _powers(interpolation, step, step, frequency_F)
    narrow_F, differences_F = _powers("bilinear", 1.0, step, frequency_F)
    gain_F = np.sqrt(wide_F / narrow_F)
    # an error weighs as it shows in the differences of a photograph, whose amplitude falls with frequency
    weight_F = np.sqrt(differences_F) / frequency_F
    # taps t = 1, 2, ... on both sides; the middle one keeps their sum at 1, so that a plain picture stays as it is
    waves_FT = 2 * np.cos(2 * np.pi * frequency_F[:, None] * np.arange(1, reach + 1)) - 2
    taps_T = np.linalg.lstsq(waves_FT * weight_F[:, None], (gain_F - 1) * weight_F)[0]
    return np.concatenate([taps_T[::-1], [1 - 2 * taps_T.sum()], taps_T])


def _powers(interpolation: str, width: float, step: float, frequency_F: Floats) -> tuple[Floats, Floats]:
    """The mean power of each frequency, of samples and their differences together, and of differences alone.

    Samples are weighed by triangles of half-width `width` or cubics of twice that, each `step` from its neighbour.
    """
    place_P = (np.arange(_PLACES) + 0.5) / _PLACES
    reach = REACH[interpolation] * width
    pixel_T = np.arange(-math.ceil(reach), math.ceil(reach + step) + 2)
    distance_2PT = np.abs(pixel_T - np.stack([place_P, place_P + step])[..., None]) / width
    weights_2PT = kernel(distance_2PT, interpolation)
    weights_2PT /= weights_2PT.sum(axis=2, keepdims=True)
    one_PF, next_PF = weights_2PT @ np.exp(2j * np.pi * pixel_T[:, None] * frequency_F)
    differences_F: Floats = (np.abs(next_PF - one_PF) ** 2).mean(axis=0)
    return (np.abs(one_PF) ** 2).mean(axis=0) + differences_F, differences_F
