"""Multi-label metrics as pure functions of scores, decisions and targets. Torch-free.

Conventions where a ratio is 0 / 0:
- a label without a true image says nothing about a classifier: all macro averages (F1, precision,
  recall and average precision) leave it out, and `absent_labels` names it; its wrong predictions count
  in the micro averages;
- precision of a label that is never predicted is 0, as in scikit-learn;
- the F1 of an image with neither true nor predicted labels is 0 in `f1_samples_empty0` (scikit-learn's
  choice) and 1 in `f1_samples_empty1`: where half of the images are negative, the two differ a lot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.spec import METRICS

# N images, K labels
Scores = npt.NDArray[np.float32]
Decisions = npt.NDArray[np.uint8]
_EPS = 1e-12  # the original work's


def all_metrics(scores_NK: Scores, decisions_NK: Decisions, targets_NK: Decisions) -> dict[str, float]:
    """Every metric of `METRICS` by name; scores in [0, 1], decisions and targets 0 or 1, all (N, K)."""
    predicted, actual = decisions_NK.astype(bool), targets_NK.astype(bool)
    counts = WeightedCounts((predicted & actual).sum(0), predicted.sum(0), actual.sum(0))
    ap_K = average_precision(scores_NK, targets_NK)
    present_K = actual.any(axis=0)
    values: dict[str, Any] = label_metrics(counts)
    values |= {name: each_N.mean() for name, each_N in image_metrics(scores_NK, predicted, actual).items()}
    values |= {
        "map_macro": ap_K[present_K].mean() if present_K.any() else 0.0,
        "map_micro": average_precision(scores_NK.reshape(-1, 1), targets_NK.reshape(-1, 1))[0],
    }
    return {name: float(np.nan_to_num(values[name])) for name in METRICS}


def label_metrics(counts: WeightedCounts) -> dict[str, npt.NDArray[np.float64]]:
    """The metrics that are made of counts per label (..., K), averaged over the last axis: (...)."""
    present = counts.actual > 0
    both = WeightedCounts(counts.true_positives.sum(-1), counts.predicted.sum(-1), counts.actual.sum(-1))
    values = {}
    for name in ("f1", "precision", "recall"):
        per_label = getattr(counts, name)
        values[f"{name}_micro"] = getattr(both, name)
        values[f"{name}_macro"] = _ratio((per_label * present).sum(-1), present.sum(-1))
        values[f"{name}_weighted"] = _ratio((per_label * counts.actual).sum(-1), both.actual)
    return values


def image_metrics(
    scores_NK: Scores, predicted: npt.NDArray[np.bool_], actual: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.float64]]:
    """The metrics that are means over images, as (N,) values of each image."""
    image = WeightedCounts((predicted & actual).sum(1), predicted.sum(1), actual.sum(1))
    agree = predicted == actual
    return {
        "precision_samples": image.precision,
        "recall_samples": image.recall,
        "f1_samples_empty0": image.f1,
        "f1_samples_empty1": np.where(image.predicted + image.actual == 0, 1.0, image.f1),
        "label_accuracy": agree.mean(axis=1),
        "exact_match": agree.all(axis=1).astype(np.float64),
        "hamming_loss": 1 - agree.mean(axis=1),
        "f1_soft_samples": f1_soft_samples(scores_NK, actual),
        "f1_weighted_both_classes": f1_weighted_both_classes(predicted, actual),
    }


def average_precision(scores_NK: Scores, targets_NK: Decisions) -> npt.NDArray[np.float64]:
    """Per label, the mean of the precision at each true image, equal scores taken together: (K,), NaN if absent."""
    result_K = np.full(targets_NK.shape[1], np.nan)
    for k, (scores_N, targets_N) in enumerate(zip(scores_NK.T, targets_NK.T, strict=True)):
        positives = targets_N.sum(dtype=np.int64)
        if positives == 0:
            continue
        order = np.argsort(-scores_N, kind="stable")
        last_of_tie = np.append(np.diff(scores_N[order]) != 0, True)
        true_positives = np.cumsum(targets_N[order], dtype=np.int64)[last_of_tie]
        precision = true_positives / (np.flatnonzero(last_of_tie) + 1)
        result_K[k] = (np.diff(true_positives, prepend=0) * precision).sum() / positives
    return result_K


def f1_soft_samples(scores_NK: Scores, targets_NK: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The original work's "soft F1": F1 of scores instead of decisions, of each image."""
    scores_NK = scores_NK.astype(np.float64)
    true_positives_N = (scores_NK * targets_NK).sum(1)
    precision_N = true_positives_N / (scores_NK.sum(1) + _EPS)
    recall_N = true_positives_N / (targets_NK.sum(1) + _EPS)
    return np.asarray(2 * precision_N * recall_N / (precision_N + recall_N + _EPS))


def f1_weighted_both_classes(
    predicted_NK: npt.NDArray[np.bool_], actual_NK: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The original work's "weighted F1": per image, F1 of the ones and of the zeros, weighted by their numbers.

    Most labels of an image are 0, so predicting no label at all scores high.
    """
    ones = WeightedCounts((predicted_NK & actual_NK).sum(1), predicted_NK.sum(1), actual_NK.sum(1))
    zeros = WeightedCounts((~predicted_NK & ~actual_NK).sum(1), (~predicted_NK).sum(1), (~actual_NK).sum(1))
    return np.asarray((ones.f1 * ones.actual + zeros.f1 * zeros.actual) / actual_NK.shape[1])


def per_label(
    labels: Sequence[str],
    scores_NK: Scores,
    decisions_NK: Decisions,
    targets_NK: Decisions,
    thresholds_K: npt.NDArray[np.float32] | None,
) -> list[dict[str, Any]]:
    """A row per label: support, predicted, precision, recall, f1, ap (None if absent), threshold (None without)."""
    predicted, actual = decisions_NK.astype(bool), targets_NK.astype(bool)
    counts = WeightedCounts((predicted & actual).sum(0), predicted.sum(0), actual.sum(0))
    ap_K = average_precision(scores_NK, targets_NK)
    return [
        {
            "label": label,
            "support": int(counts.actual[k]),
            "predicted": int(counts.predicted[k]),
            "precision": float(counts.precision[k]),
            "recall": float(counts.recall[k]),
            "f1": float(counts.f1[k]),
            "ap": None if np.isnan(ap_K[k]) else float(ap_K[k]),
            "threshold": None if thresholds_K is None else float(thresholds_K[k]),
        }
        for k, label in enumerate(labels)
    ]


def absent_labels(labels: Sequence[str], targets_NK: Decisions) -> list[str]:
    """Labels without a single true image."""
    return [label for label, count in zip(labels, targets_NK.sum(axis=0), strict=True) if count == 0]


class WeightedCounts:
    """True positives, predicted and actual positives, of any shape and weight; their ratios (0 / 0 = 0)."""

    def __init__(self, true_positives: Any, predicted: Any, actual: Any) -> None:
        self.true_positives, self.predicted, self.actual = (
            np.asarray(a, np.float64) for a in (true_positives, predicted, actual)
        )

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """True positives of those predicted."""
        return _ratio(self.true_positives, self.predicted)

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """True positives of the actual ones."""
        return _ratio(self.true_positives, self.actual)

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """Their harmonic mean."""
        return _ratio(2 * self.true_positives, self.predicted + self.actual)


def _ratio(above: Any, below: Any) -> npt.NDArray[np.float64]:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    ratio = np.zeros(np.broadcast_shapes(above.shape, below.shape))
    np.divide(above, below, out=ratio, where=below != 0)
    return ratio
