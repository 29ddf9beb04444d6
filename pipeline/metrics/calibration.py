"""Calibration of scores to probabilities: reliability, temperature and Platt scaling. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from pipeline.metrics.multilabel import Decisions, Scores
from pipeline.spec import CalibrationMethod

# N images, K labels
BINS = 10
_AT_ONCE = 2**20  # scores
_RIDGE = 1e-3  # negligible beside the data of any label that scores do not separate


@dataclass(frozen=True)
class Calibration:
    """Scores to probabilities, per label: sigmoid(slope * logit + intercept)."""

    slope_K: npt.NDArray[np.float64]
    intercept_K: npt.NDArray[np.float64]

    def __call__(self, scores_NK: Scores) -> Scores:
        """(N, K) in [0, 1]; the scores themselves where nothing was fitted."""
        if (self.slope_K == 1).all() and (self.intercept_K == 0).all():
            return scores_NK
        calibrated_NK = np.empty(scores_NK.shape, np.float32)
        for chunk in _chunks(scores_NK):
            z_NK = self.slope_K * _logit(scores_NK[chunk]) + self.intercept_K
            calibrated_NK[chunk] = 1 / (1 + np.exp(-z_NK))
        return calibrated_NK

    def as_dict(self) -> dict[str, list[float]]:
        """For report.json."""
        return {"slope": self.slope_K.tolist(), "intercept": self.intercept_K.tolist()}


def fit_calibration(method: CalibrationMethod, scores_NK: Scores, targets_NK: Decisions) -> Calibration:
    """`temperature` fits a slope per label (Guo et al. 2017), `platt` an intercept too, `none` neither.

    Platt's targets are smoothed as in his paper (1999), so that a label that scores separate keeps a
    finite slope. A label without a positive image is not calibrated.
    """
    labels = scores_NK.shape[1]
    found = Calibration(np.ones(labels), np.zeros(labels))
    if method == "none":
        return found
    for k in np.flatnonzero(targets_NK.any(axis=0)):
        z_N, t_N = _logit(scores_NK[:, k]), targets_NK[:, k].astype(np.float64)
        if method == "platt":
            positives, images = t_N.sum(), len(t_N)
            high, low = (positives + 1) / (positives + 2), 1 / (images - positives + 2)
            x_ND = np.stack([z_N, np.ones(images)], axis=1)
            found.slope_K[k], found.intercept_K[k] = _newton(x_ND, np.where(t_N > 0, high, low))
        elif method == "temperature":
            (found.slope_K[k],) = _newton(z_N[:, None], t_N)
        else:
            assert_never(method)
    return found


def _newton(x_ND: npt.NDArray[np.float64], t_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Logistic regression of t on x from slope 1, by Newton steps; a small ridge keeps separable labels finite."""
    start_D = np.eye(x_ND.shape[1])[0]

    def loss(w_D: npt.NDArray[np.float64]) -> float:
        z_N = x_ND @ w_D
        return float((np.logaddexp(0, z_N) - t_N * z_N).sum() + _RIDGE / 2 * ((w_D - start_D) ** 2).sum())

    w_D: npt.NDArray[np.float64] = start_D
    value = loss(w_D)
    for _ in range(100):
        p_N = 1 / (1 + np.exp(-(x_ND @ w_D)))
        gradient_D = x_ND.T @ (p_N - t_N) + _RIDGE * (w_D - start_D)
        hessian_DD = (x_ND * (p_N * (1 - p_N))[:, None]).T @ x_ND + _RIDGE * np.eye(len(w_D))
        step_D = np.linalg.solve(hessian_DD, gradient_D)
        size = 1.0
        while (new := loss(w_D - size * step_D)) > value and size > 1e-6:
            size /= 2
        if value - new < 1e-9 * abs(value):
            break
        w_D, value = w_D - size * step_D, new
    return w_D


def _logit(scores: Scores) -> npt.NDArray[np.float64]:
    inside = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    logits: npt.NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
    return logits


def _chunks(scores_NK: Scores) -> Iterator[slice]:
    """Rows whose copies as float64 take a few MB."""
    images, labels = scores_NK.shape
    rows = max(1, _AT_ONCE // max(labels, 1))
    for start in range(0, images, rows):
        yield slice(start, start + rows)


def reliability(scores_NK: Scores, targets_NK: Decisions) -> dict[str, Any]:
    """`ece` of all scores together, and `reliability`: a row per tenth of [0, 1] that holds scores.

    The expected calibration error (Naeini et al. 2015) is the mean distance of a bin's mean score from
    its fraction of true labels, weighted by the number of scores in it.
    """
    count, score_sum, true_sum = np.zeros((3, BINS))
    for chunk in _chunks(scores_NK):
        scores, targets = scores_NK[chunk].ravel().astype(np.float64), targets_NK[chunk].ravel()
        bin_of = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
        count += np.bincount(bin_of, minlength=BINS)
        score_sum += np.bincount(bin_of, scores, BINS)
        true_sum += np.bincount(bin_of, targets, BINS)
    safe = np.maximum(count, 1)
    mean_score, share_true = score_sum / safe, true_sum / safe
    rows = [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "count": int(count[i]),
            "mean_score": float(mean_score[i]),
            "share_true": float(share_true[i]),
        }
        for i in np.flatnonzero(count)
    ]
    error = float((np.abs(mean_score - share_true) * count).sum() / max(scores_NK.size, 1))
    return {"ece": error, "reliability": rows}


def ece(scores_NK: Scores, targets_NK: Decisions) -> float:
    """The expected calibration error alone."""
    return float(reliability(scores_NK, targets_NK)["ece"])
