"""From scores to decisions: one threshold, or one per label tuned on validation. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt

from pipeline.metrics.multilabel import Decisions, Scores, WeightedCounts
from pipeline.spec import TunedMetric

# N images, K labels
Truth = npt.NDArray[np.uint8] | npt.NDArray[np.float32]  # labels, or the probability of each
Thresholds = npt.NDArray[np.float32]
Orders = Sequence[npt.NDArray[np.int32]]  # of each label, the images by decreasing score
_ROUNDS = 30  # at most; it ends earlier once a round improves nothing


def decide(scores_NK: Scores, thresholds_K: Thresholds) -> Decisions:
    """1 where a score reaches its label's threshold: (N, K) uint8."""
    return (scores_NK >= np.asarray(thresholds_K, np.float32)).astype(np.uint8)


def tune(metric: TunedMetric, scores_NK: Scores, targets_NK: Truth) -> Thresholds:
    """The thresholds (K,) that maximise `metric` on these images.

    For `f1_macro` and `f1_micro` the maximum is exact. For the two `f1_samples_*` it is local: no single
    label's threshold improves it. A threshold lies midway between two scores; of equally good ones the
    highest is taken. A label without a positive image has nothing to tune on and keeps 0.5.
    For `f1_macro` and `f1_micro` the targets may be probabilities: their F1 is then the ratio of expected
    counts, whose best threshold is half of the F1 reached (Lipton, Elkan and Naryanaswamy 2014).
    """
    if metric == "f1_macro":
        return tune_per_label(scores_NK, targets_NK)
    # 4 bytes a score: an index of 8, beside true positives of 8, would be a multiple of the scores
    orders = [_order(scores_N).astype(np.int32) for scores_N in scores_NK.T]
    if metric == "f1_micro":
        return _tune_micro(scores_NK, targets_NK, orders)
    assert targets_NK.dtype == np.uint8, "F1 per image is not a ratio of expected counts"
    targets_NK = targets_NK.astype(np.uint8)
    starts = (_tune_micro(scores_NK, targets_NK, orders), tune_per_label(scores_NK, targets_NK))
    if metric == "f1_samples_empty1":
        empty_f1 = 1.0
    elif metric == "f1_samples_empty0":
        empty_f1 = 0.0
    else:
        assert_never(metric)
    found = [_tune_samples(scores_NK, targets_NK, orders, start_K, empty_f1) for start_K in starts]
    return max(found, key=lambda pair: pair[1])[0]


def tune_per_label(scores_NK: Scores, targets_NK: Truth) -> Thresholds:
    """The threshold of each label that gives it the highest F1: (K,)."""
    thresholds_K = np.full(scores_NK.shape[1], 0.5, np.float32)
    for k, (scores_N, targets_N) in enumerate(zip(scores_NK.T, targets_NK.T, strict=True)):
        positives = targets_N.sum(dtype=np.float64)
        if positives:
            order = _order(scores_N)
            true_positives = _true_positives(targets_N[order])
            thresholds_K[k] = _cut(
                scores_N[order], 2 * true_positives / (np.arange(len(true_positives)) + positives)
            )
    return thresholds_K


def _tune_micro(scores_NK: Scores, targets_NK: Truth, orders: Orders) -> Thresholds:
    """2 true positives / (predicted + actual) over all labels is a ratio of sums: Dinkelbach's method (1967) is exact.

    For a value F it maximises 2 true positives - F predicted, which every label can do by itself; F then becomes
    the value reached, until it stops rising.
    """
    thresholds_K = np.full(scores_NK.shape[1], 0.5, np.float32)
    value = -1.0
    for _ in range(_ROUNDS):
        predicted_NK = decide(scores_NK, thresholds_K)
        true_positives = (predicted_NK * targets_NK).sum(dtype=np.float64)
        both = WeightedCounts(true_positives, predicted_NK.sum(), targets_NK.sum(dtype=np.float64))
        if float(both.f1) <= value:
            break
        value = float(both.f1)
        for k, order in enumerate(orders):
            true_positives = _true_positives(targets_NK[order, k])
            if true_positives[-1]:
                thresholds_K[k] = _cut(
                    scores_NK[order, k], 2 * true_positives - value * np.arange(len(true_positives))
                )
    return thresholds_K


def _tune_samples(
    scores_NK: Scores,
    targets_NK: Decisions,
    orders: Orders,
    start_K: Thresholds,
    empty_f1: float,
) -> tuple[Thresholds, float]:
    """Coordinate ascent of the mean F1 over images: one label's threshold at a time, the others fixed.

    A round costs N K: what the other labels count is what all count, less this label.
    """
    thresholds_K = start_K.copy()
    predicted_NK = decide(scores_NK, thresholds_K)
    actual_N = targets_NK.sum(axis=1, dtype=np.int64)
    true_positives_N = (predicted_NK & targets_NK).sum(axis=1, dtype=np.int64)
    predicted_N = predicted_NK.sum(axis=1, dtype=np.int64)

    def f1(
        true_positives_N: npt.NDArray[np.int64], predicted_N: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        return np.where(
            predicted_N + actual_N == 0,
            empty_f1,
            2 * true_positives_N / np.maximum(predicted_N + actual_N, 1),
        )

    value = -1.0
    for _ in range(_ROUNDS):
        reached = float(f1(true_positives_N, predicted_N).mean())
        if reached <= value + 1e-12:
            break
        value = reached
        for k, order in enumerate(orders):
            true_N = targets_NK[:, k]
            if not true_N.any():
                continue
            true_positives_N -= predicted_NK[:, k] & true_N
            predicted_N -= predicted_NK[:, k]
            gain_N = f1(true_positives_N + true_N, predicted_N + 1) - f1(true_positives_N, predicted_N)
            gains = np.concatenate([[0.0], np.cumsum(gain_N[order])])
            thresholds_K[k] = _cut(scores_NK[order, k], gains)
            predicted_NK[:, k] = scores_NK[:, k] >= thresholds_K[k]
            true_positives_N += predicted_NK[:, k] & true_N
            predicted_N += predicted_NK[:, k]
    return thresholds_K, value


def _order(scores_N: Scores) -> npt.NDArray[np.int64]:
    """The images by decreasing score."""
    return np.argsort(-scores_N, kind="stable")


def _true_positives(ranked_N: Truth) -> npt.NDArray[np.float64]:
    """(N + 1,): the (expected) true positives among the first 0, 1, ... N."""
    return np.concatenate([[0.0], np.cumsum(ranked_N, dtype=np.float64)])


def _cut(ranked: Scores, values: npt.NDArray[np.float64]) -> np.float32:
    """The threshold that predicts the first n images, for the n with the highest of `values` (n = 0, 1, ... N)."""
    values = np.array(values, np.float64)
    values[1:-1][ranked[:-1] == ranked[1:]] = -np.inf  # equal scores are predicted alike
    n = int(values.argmax())
    if n == 0:
        top = float(ranked[0])
        return np.float32((top + 1) / 2) if np.float32((top + 1) / 2) > ranked[0] else np.float32(2)
    lower = ranked[n] if n < len(ranked) else np.float32(0)
    middle = np.float32((float(ranked[n - 1]) + float(lower)) / 2)
    return middle if middle > lower else ranked[n - 1]
