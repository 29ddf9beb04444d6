"""Uncertainty of metrics: bootstrap over the validation images, and corrected comparisons. Torch-free.

Every cell of equally many images is resampled by the same draws, so that two cells validated on the same
images are compared image by image (paired). An interval covers the choice of images. It covers the seed of
training only where a cell was trained with several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.multilabel import Decisions, Scores, WeightedCounts, image_metrics, label_metrics
from pipeline.seeding import seeded
from pipeline.spec import METRICS

# N images, K labels, R resamples
Resampled = dict[str, npt.NDArray[np.float64]]  # metric -> (R,)
RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 50  # resamples at a time: their running sums stay in the cache


@lru_cache(maxsize=4)
def resample_counts(images: int) -> npt.NDArray[np.float32]:
    """(R, N): how often each image is in each resample (multinomial)."""
    share_N = np.full(images, 1 / images)
    return seeded(0, "bootstrap", images).multinomial(images, share_N, RESAMPLES).astype(np.float32)


def bootstrap(scores_NK: Scores, decisions_NK: Decisions, targets_NK: Decisions) -> Resampled:
    """Every metric of `METRICS` on each of the resamples of the images (Efron 1979)."""
    weights_RN = resample_counts(len(targets_NK))
    predicted, actual = decisions_NK.astype(bool), targets_NK.astype(bool)
    stacked = np.concatenate([predicted & actual, predicted, actual], axis=1).astype(np.float32)
    true_positives_RK, predicted_RK, actual_RK = np.split(
        (weights_RN @ stacked).astype(np.float64), 3, axis=1
    )
    values = label_metrics(WeightedCounts(true_positives_RK, predicted_RK, actual_RK))
    per_image = image_metrics(scores_NK, predicted, actual)
    means = weights_RN @ np.stack(list(per_image.values()), axis=1).astype(np.float32) / len(targets_NK)
    values |= dict(zip(per_image, means.T.astype(np.float64), strict=True))
    ap_RK = np.stack(
        [_average_precision(s, t, weights_RN) for s, t in zip(scores_NK.T, actual.T, strict=True)], axis=1
    )
    present = np.isfinite(ap_RK)
    values["map_macro"] = np.where(present, ap_RK, 0).sum(1) / np.maximum(present.sum(1), 1)
    image_of = np.repeat(np.arange(len(actual)), actual.shape[1])
    values["map_micro"] = np.nan_to_num(
        _average_precision(scores_NK.ravel(), actual.ravel(), weights_RN, image_of)
    )
    return {name: values[name] for name in METRICS}


def _average_precision(
    scores_N: Scores,
    actual_N: npt.NDArray[np.bool_],
    weights_RN: npt.NDArray[np.float32],
    image_of: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float64]:
    """(R,): average precision under each resample, equal scores taken together; NaN without a true image."""
    order = np.argsort(-scores_N, kind="stable")
    ranked, actual_N = scores_N[order], actual_N[order]
    order = order if image_of is None else image_of[order]
    at = np.flatnonzero(actual_N)
    # precision at a true image counts all images that score at least as high: up to the last of a tie
    last = (len(ranked) - np.searchsorted(ranked[::-1], ranked[at])) - 1
    result_R = np.full(len(weights_RN), np.nan)
    if not len(at):
        return result_R
    hits_at = np.searchsorted(at, last, side="right") - 1
    # float32 counts exactly below 2**24; beyond, it stands still
    exact: type[np.floating[Any]] = np.float32 if len(order) < 2**24 else np.float64
    rows = max(1, min(_CHUNK, 2**27 // len(order)))
    for start in range(0, len(weights_RN), rows):
        chunk = slice(start, start + rows)
        weights = weights_RN[chunk][:, order]
        own = weights[:, at]
        below = np.cumsum(weights, axis=1, dtype=exact)[:, last]
        true_positives = np.cumsum(own, axis=1, dtype=exact)[:, hits_at]
        total = own.sum(axis=1, dtype=np.float64)
        precision = np.divide(true_positives, below, out=np.zeros_like(true_positives), where=below > 0)
        with np.errstate(invalid="ignore"):
            result_R[chunk] = (own * precision).sum(axis=1, dtype=np.float64) / total
    return result_R


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
