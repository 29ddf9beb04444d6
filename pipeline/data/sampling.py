"""Which training images an epoch uses, and how often: a function of (seed, epoch), of constant length."""

from __future__ import annotations

from typing import assert_never

import numpy as np
import numpy.typing as npt

from pipeline.seeding import seeded
from pipeline.spec import SamplingSpec

# N training images, K labels
Rows = npt.NDArray[np.int64]
_VALUES = 1 << 20  # numbers of 8 bytes at a time


def expected_repeats(spec: SamplingSpec, targets_NK: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(N,): how often each training image is used in an epoch, on average.

    `repeat_factor` uses an image max(1, sqrt(threshold / f)) times, with f the fraction of images that
    have its rarest label (Gupta, Dollar & Girshick 2019). `inverse_frequency` uses it in proportion to
    1 / f. Negative images then count as one more label, and the total stays the number of images.
    """
    images = len(targets_NK)
    negative_N = ~targets_NK.any(axis=1)
    share_K = np.maximum(targets_NK.mean(axis=0), 1 / images)
    rarest_N = np.empty(images)
    for part in _parts(targets_NK):
        rarest_N[part] = np.where(targets_NK[part] > 0, share_K, 1.0).min(axis=1)
    repeats_N = np.ones(images)
    if spec.name == "repeat_factor":
        repeats_N = np.maximum(1.0, np.sqrt(spec.threshold / rarest_N))
        repeats_N[negative_N] = 1.0
    elif spec.name == "inverse_frequency":
        rarest_N[negative_N] = max(negative_N.mean(), 1 / images)
        repeats_N = 1 / rarest_N
        repeats_N *= images / repeats_N.sum()
    elif spec.name != "each_once":
        assert_never(spec.name)
    repeats_N[negative_N] *= spec.negatives
    return repeats_N


def label_shares(
    targets_NK: npt.NDArray[np.uint8], repeats_N: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """(K,): the share of the images that have each label, an image counted as often as it is used.

    As `np.average` gives it, to the last bit for several labels: its sum goes on from part to part.
    """
    if repeats_N is None:
        return np.asarray(targets_NK.mean(axis=0))
    sum_1K = np.zeros((1, targets_NK.shape[1]))
    for part in _parts(targets_NK):
        sum_1K = np.vstack([sum_1K, targets_NK[part] * repeats_N[part, None]]).sum(axis=0, keepdims=True)
    return np.asarray(sum_1K[0] / repeats_N.sum())


def _parts(targets_NK: npt.NDArray[np.uint8]) -> list[slice]:
    """The images in parts of a few megabytes of numbers."""
    images, labels = targets_NK.shape
    rows = max(1, _VALUES // max(labels, 1))
    return [slice(start, start + rows) for start in range(0, images, rows)]


def epoch_rows(rows: Rows, repeats_N: npt.NDArray[np.float64], seed: int, epoch: int) -> Rows:
    """The rows of one epoch, some of them several times or not at all; every epoch has the same number.

    Systematic sampling in a random order: an image is used its expected number of times, rounded down or up.
    """
    rng = seeded(seed, "sampling", epoch)
    order = rng.permutation(len(rows))
    ends_N = np.cumsum(repeats_N[order])
    total = max(round(float(ends_N[-1])), 1)
    ends_N *= total / ends_N[-1]
    ends_N[-1] = total
    times_N = np.diff(np.floor(ends_N + rng.random()), prepend=0.0).astype(np.int64)
    return np.repeat(rows[order], times_N)
