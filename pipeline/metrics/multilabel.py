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

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.ranking import precision_of_sorted, rank_keys
from pipeline.spec import METRICS

# N images, K labels
Scores = npt.NDArray[np.float32]
Decisions = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.uint8] | npt.NDArray[np.bool_]
_EPS = 1e-12  # the original work's
_AT_ONCE = 2**18  # scores: their temporaries stay in the cache


def all_metrics(scores_NK: Scores, decisions_NK: Decisions, targets_NK: Decisions) -> dict[str, float]:
    """Every metric of `METRICS` by name; scores in [0, 1], decisions and targets 0 or 1, all (N, K).

    Every epoch of training asks for it. It reads the scores twice, sorts them once per label and once
    together, and takes 5 bytes a score beside them.
    """
    values: dict[str, Any] = label_metrics(label_counts(decisions_NK, targets_NK))
    per_image = image_metrics(scores_NK, decisions_NK, targets_NK)
    values |= {name: each_N.mean() for name, each_N in per_image.items()}
    keys_KN = rank_keys(scores_NK, targets_NK)
    ap_K = _precision_of_each(keys_KN)
    together = keys_KN.reshape(-1)
    together.sort()
    present_K = np.isfinite(ap_K)
    values |= {
        "map_macro": ap_K[present_K].mean() if present_K.any() else 0.0,
        "map_micro": precision_of_sorted(together),
    }
    return {name: float(np.nan_to_num(values[name])) for name in METRICS}


def label_counts(decisions_NK: Flags, targets_NK: Flags) -> WeightedCounts:
    """The counts of each label, (K,)."""
    counts_3K = np.zeros((3, decisions_NK.shape[1]), np.int64)
    for _, predicted, actual in _chunks(decisions_NK, targets_NK):
        for counts_K, flags in zip(counts_3K, (predicted & actual, predicted, actual), strict=True):
            # a byte counts up to 255 rows, 64 labels at once
            whole = len(flags) // 255 * 255
            by_255 = flags[:whole].reshape(-1, 255, flags.shape[1]).sum(axis=1, dtype=np.uint8)
            counts_K += by_255.sum(axis=0, dtype=np.int64) + flags[whole:].sum(axis=0, dtype=np.int64)
    return WeightedCounts(*counts_3K)


def _image_counts(decisions_NK: Flags, targets_NK: Flags) -> WeightedCounts:
    counts_3N = np.zeros((3, len(decisions_NK)), np.int64)
    for chunk, predicted, actual in _chunks(decisions_NK, targets_NK):
        for counts_N, flags in zip(counts_3N, (predicted & actual, predicted, actual), strict=True):
            small = flags.shape[1] < 2**16
            counts_N[chunk] = flags.sum(axis=1, dtype=np.uint16 if small else np.int64)
    return WeightedCounts(*counts_3N)


def _chunks(
    decisions_NK: Flags, targets_NK: Flags
) -> Iterator[tuple[slice, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Some rows at a time, as bytes of 0 and 1."""
    images, labels = decisions_NK.shape
    rows = max(1, _AT_ONCE // max(labels, 1))
    for start in range(0, images, rows):
        chunk = slice(start, start + rows)
        predicted, actual = (each[chunk].astype(bool).view(np.uint8) for each in (decisions_NK, targets_NK))
        yield chunk, predicted, actual


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
    scores_NK: Scores, decisions_NK: Flags, targets_NK: Flags
) -> dict[str, npt.NDArray[np.float64]]:
    """The metrics that are means over images, as (N,) values of each image."""
    labels = decisions_NK.shape[1]
    image = _image_counts(decisions_NK, targets_NK)
    agree_N = labels - image.predicted - image.actual + 2 * image.true_positives
    return {
        "precision_samples": image.precision,
        "recall_samples": image.recall,
        "f1_samples_empty0": image.f1,
        "f1_samples_empty1": np.where(image.predicted + image.actual == 0, 1.0, image.f1),
        "label_accuracy": agree_N / labels,
        "exact_match": (agree_N == labels).astype(np.float64),
        "hamming_loss": 1 - agree_N / labels,
        "f1_soft_samples": f1_soft_samples(scores_NK, targets_NK),
        "f1_weighted_both_classes": _f1_weighted_both_classes(image, labels),
    }


def average_precision(scores_NK: Scores, targets_NK: Flags) -> npt.NDArray[np.float64]:
    """Per label, the mean of the precision at each true image, equal scores taken together: (K,), NaN if absent."""
    return _precision_of_each(rank_keys(scores_NK, targets_NK))


def _precision_of_each(keys_KN: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """Sorts the keys of each label in place."""
    keys_KN.sort(axis=1)
    return np.array([precision_of_sorted(keys_N) for keys_N in keys_KN], np.float64)


def f1_soft_samples(scores_NK: Scores, targets_NK: Flags) -> npt.NDArray[np.float64]:
    """The original work's "soft F1": F1 of scores instead of decisions, of each image."""
    images, labels = scores_NK.shape
    true_positives_N, predicted_N, actual_N = np.zeros((3, images))
    rows = max(1, _AT_ONCE // max(labels, 1) // 8)
    for start in range(0, images, rows):
        chunk = slice(start, start + rows)
        scores, actual = scores_NK[chunk].astype(np.float64), targets_NK[chunk].astype(bool)
        predicted_N[chunk], actual_N[chunk] = scores.sum(axis=1), actual.sum(axis=1)
        scores *= actual
        true_positives_N[chunk] = scores.sum(axis=1)
    precision_N = true_positives_N / (predicted_N + _EPS)
    recall_N = true_positives_N / (actual_N + _EPS)
    return np.asarray(2 * precision_N * recall_N / (precision_N + recall_N + _EPS))


def _f1_weighted_both_classes(ones: WeightedCounts, labels: int) -> npt.NDArray[np.float64]:
    """The original work's "weighted F1": per image, F1 of the ones and of the zeros, weighted by their numbers.

    Most labels of an image are 0, so predicting no label at all scores high.
    """
    both_zero = labels - ones.predicted - ones.actual + ones.true_positives
    zeros = WeightedCounts(both_zero, labels - ones.predicted, labels - ones.actual)
    return np.asarray((ones.f1 * ones.actual + zeros.f1 * zeros.actual) / labels)


def per_label(
    labels: Sequence[str],
    scores_NK: Scores,
    decisions_NK: Decisions,
    targets_NK: Decisions,
    thresholds_K: npt.NDArray[np.float32] | None,
) -> list[dict[str, Any]]:
    """A row per label: support, predicted, precision, recall, f1, ap (None if absent), threshold (None without)."""
    counts = label_counts(decisions_NK, targets_NK)
    precision_K, recall_K, f1_K = counts.precision, counts.recall, counts.f1
    ap_K = average_precision(scores_NK, targets_NK)
    return [
        {
            "label": label,
            "support": int(counts.actual[k]),
            "predicted": int(counts.predicted[k]),
            "precision": float(precision_K[k]),
            "recall": float(recall_K[k]),
            "f1": float(f1_K[k]),
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
