"""Uncertainty of metrics: bootstrap over the validation images, and corrected comparisons. Torch-free.

Every cell of equally many images is resampled by the same draws, so that two cells validated on the same
images are compared image by image (paired). An interval covers the choice of images. It covers the seed of
training only where a cell was trained with several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.multilabel import Decisions, Scores, WeightedCounts, image_metrics, label_metrics
from pipeline.metrics.resampling import (
    Weights,
    image_keys,
    resample_weights,
    weighted_average_precision,
)
from pipeline.spec import METRICS

# N images, K labels, R resamples
Resampled = dict[str, npt.NDArray[np.float64]]  # metric -> (R,)
LEVEL = 0.95
_AT_ONCE = 2**22  # values of an array


def bootstrap(scores_NK: Scores, decisions_NK: Decisions, targets_NK: Decisions) -> Resampled:
    """Every metric of `METRICS` on each of the resamples of the images (Efron 1979).

    Takes 9 bytes a score beside the arguments, 1 kB an image up to 256 MiB, and 64 bytes a label and resample;
    and time of RESAMPLES N K, about a microsecond a score.
    """
    per_image = image_metrics(scores_NK, decisions_NK, targets_NK)
    parts: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in METRICS}
    for weights_NR in resample_weights(len(targets_NK)):
        values = label_metrics(_label_counts(weights_NR, decisions_NK, targets_NK))
        values |= _means(weights_NR, per_image)
        ap_RK = _precision_of_labels(weights_NR, scores_NK, targets_NK)
        present = np.isfinite(ap_RK)
        values["map_macro"] = np.where(present, ap_RK, 0).sum(1) / np.maximum(present.sum(1), 1)
        together = image_keys(scores_NK, targets_NK).reshape(-1)
        together.sort()
        values["map_micro"] = np.nan_to_num(weighted_average_precision(weights_NR, together))
        for name, part in parts.items():
            part.append(values[name])
    return {name: np.concatenate(part) for name, part in parts.items()}


def _label_counts(weights_NR: Weights, decisions_NK: Decisions, targets_NK: Decisions) -> WeightedCounts:
    """The counts of each label under each resample: (R, K)."""
    (images, resamples), labels = weights_NR.shape, targets_NK.shape[1]
    # of so few images float32 counts exactly
    rows = max(1, _AT_ONCE // (resamples + 3 * labels))
    counts_RS = np.zeros((resamples, 3 * labels))
    for start in range(0, images, rows):
        chunk = slice(start, start + rows)
        predicted, actual = decisions_NK[chunk].astype(bool), targets_NK[chunk].astype(bool)
        stacked = np.concatenate([predicted & actual, predicted, actual], axis=1).astype(np.float32)
        counts_RS += weights_NR[chunk].T.astype(np.float32) @ stacked
    return WeightedCounts(*np.split(counts_RS, 3, axis=1))


def _means(weights_NR: Weights, per_image: Resampled) -> Resampled:
    """The mean over the images of each resample: (R,); of values in [0, 1].

    Values are rounded to so few bits (37 for 10,000 images) that every sum of a resample is a whole number below
    2**53. So the sums are exact, whatever order BLAS adds in, which depends on its threads.
    """
    images, resamples = weights_NR.shape
    scale = 2.0 ** (52 - images.bit_length())
    rows = max(1, _AT_ONCE // resamples)
    sums_RV = np.zeros((resamples, len(per_image)))
    for start in range(0, images, rows):
        chunk = slice(start, start + rows)
        values_NV = np.rint(np.stack([each_N[chunk] for each_N in per_image.values()], axis=1) * scale)
        sums_RV += weights_NR[chunk].T.astype(np.float64) @ values_NV
    return dict(zip(per_image, (sums_RV / scale / images).T, strict=True))


def _precision_of_labels(
    weights_NR: Weights, scores_NK: Scores, targets_NK: Decisions
) -> npt.NDArray[np.float64]:
    """(R, K): average precision of each label under each resample; NaN where it is absent."""
    (images, resamples), labels = weights_NR.shape, targets_NK.shape[1]
    ap_RK = np.empty((resamples, labels))
    at_once = max(1, _AT_ONCE // max(images, 1))
    for start in range(0, labels, at_once):
        chunk = slice(start, start + at_once)
        keys_KN = np.ascontiguousarray(image_keys(scores_NK[:, chunk], targets_NK[:, chunk]).T)
        keys_KN.sort(axis=1)
        for k, keys_N in enumerate(keys_KN, start):
            ap_RK[:, k] = weighted_average_precision(weights_NR, keys_N)
    return ap_RK


def intervals(resampled: Resampled) -> dict[str, float]:
    """`<metric>_lo` and `<metric>_hi`: the middle 95 % of the resamples (percentile interval)."""
    tail = (1 - LEVEL) / 2
    result: dict[str, float] = {}
    for name, values_R in resampled.items():
        low, high = np.quantile(values_R, [tail, 1 - tail])
        result |= {f"{name}_lo": float(low), f"{name}_hi": float(high)}
    return result


@dataclass(frozen=True)
class Contender:
    """A cell, or the seeds of one cell together: name, metric of each seed, metric under each resample."""

    name: str
    values: tuple[float, ...]
    resampled_R: npt.NDArray[np.float64]  # mean over the seeds

    @property
    def value(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def seed_variance(self) -> float:
        """Variance of the mean over the seeds; 0 for a single seed, where it is unknown."""
        return float(np.var(self.values, ddof=1)) / len(self.values) if len(self.values) > 1 else 0.0


IMAGES, SOME, BOTH = "images", "images, seeds of one", "images and seeds"  # what a comparison covers


def compare(contenders: Sequence[Contender], metric: str, *, lower_is_better: bool) -> list[dict[str, Any]]:
    """Every pair, the better first: difference, its 95 % interval, p, and p corrected by Holm (1979).

    The variance of a difference is that of its paired resamples, and of the seeds where there are
    several; p is two-sided under Student's t, because resamples alone cannot give a p small enough to
    survive the correction. Its degrees of freedom are Satterthwaite's (1946): a variance of few seeds
    is itself uncertain. Of recipes with one seed each the luck of training is unknown: their verdict is
    of these images (`a leads on these images`), never `a is better`.
    """
    sign = -1 if lower_is_better else 1
    ranked = sorted(contenders, key=lambda c: (-sign * c.value, c.name))
    rows: list[dict[str, Any]] = []
    for i, a in enumerate(ranked):
        for b in ranked[i + 1 :]:
            difference = a.value - b.value
            of_images = float(np.var(a.resampled_R - b.resampled_R, ddof=1))
            error = math.sqrt(of_images + a.seed_variance + b.seed_variance)
            freedom = _degrees_of_freedom(a, b, error**2)
            p = two_sided_p(difference / error, freedom) if error > 0 else float(difference == 0)
            half = _quantile(freedom) * error
            row = {"a": a.name, "b": b.name, "metric": metric, "difference": difference}
            several = (len(a.values) > 1) + (len(b.values) > 1)
            row |= {"lo": difference - half, "hi": difference + half, "p": p}
            rows.append(row | {"covers": (IMAGES, SOME, BOTH)[several]})
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = corrected
        leads = "a is better" if row["covers"] == BOTH else "a leads on these images"
        row["verdict"] = leads if corrected < 1 - LEVEL else "no significant difference"
    return rows


def _degrees_of_freedom(a: Contender, b: Contender, variance: float) -> float:
    """Satterthwaite's, of a variance of which the seeds' part is estimated from few; the images' part from many."""
    uncertain = sum(c.seed_variance**2 / (len(c.values) - 1) for c in (a, b) if len(c.values) > 1)
    return variance**2 / uncertain if uncertain > 0 else math.inf


def two_sided_p(t: float, freedom: float) -> float:
    """P(|T| >= |t|) under Student's t: the integral of cos^(f - 1) from atan(|t| / sqrt(f)) to pi / 2."""
    if freedom > 1e5:
        return math.erfc(abs(t) / math.sqrt(2))
    start = math.atan(abs(t) / math.sqrt(freedom))
    nodes, weights = _NODES
    angles = start + (math.pi / 2 - start) * (nodes + 1) / 2
    integral = (math.pi / 2 - start) / 2 * float((weights * np.cos(angles) ** (freedom - 1)).sum())
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * scale * integral)


_NODES = np.polynomial.legendre.leggauss(400)


def _quantile(freedom: float) -> float:
    """The t beyond which 5 % lie, by bisection."""
    low, high = 1.9, 13.0  # of infinitely many degrees and of one
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > 1 - LEVEL else (low, middle)
    return (low + high) / 2


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, step down (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def over_seeds(metrics: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """`<metric>_mean` and `<metric>_sd` (of single runs, n - 1) over the seeds of a cell."""
    result = {}
    for name in names:
        values = [seed[name] for seed in metrics]
        result[f"{name}_mean"] = float(np.mean(values))
        if len(values) > 1:
            result[f"{name}_sd"] = float(np.std(values, ddof=1))
    return result
