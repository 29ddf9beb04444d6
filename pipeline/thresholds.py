"""From scores to decisions: one threshold, or one per label tuned on validation. Torch-free."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.data.seeding import seeded

# N images, K labels
Scores = npt.NDArray[np.float32]
Decisions = npt.NDArray[np.uint8]
FOLDS = 5


def decide(scores_NK: Scores, thresholds_K: npt.NDArray[np.float32]) -> Decisions:
    """1 where a score reaches its label's threshold: (N, K) uint8."""
    return (scores_NK >= np.asarray(thresholds_K, np.float32)).astype(np.uint8)


def tune_per_label(scores_NK: Scores, targets_NK: Decisions) -> npt.NDArray[np.float32]:
    """The threshold of each label that gives it the highest F1 on these images: (K,).

    It lies midway between two scores; of equally good ones the highest is taken. A label without a
    positive image has nothing to tune on and keeps 0.5.
    """
    thresholds_K = np.full(scores_NK.shape[1], 0.5, np.float32)
    for k, (scores_N, targets_N) in enumerate(zip(scores_NK.T, targets_NK.T, strict=True)):
        positives = targets_N.sum(dtype=np.int64)
        if positives == 0:
            continue
        order = np.argsort(-scores_N, kind="stable")
        ranked = scores_N[order]
        hits = np.cumsum(targets_N[order], dtype=np.int64)
        f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + positives)
        f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores are decided alike
        cut = int(f1.argmax())
        lower = ranked[cut + 1] if cut + 1 < len(ranked) else np.float32(0)
        middle = np.float32((float(ranked[cut]) + float(lower)) / 2)
        thresholds_K[k] = middle if middle > lower else ranked[cut]
    return thresholds_K


def cross_fitted_decisions(scores_NK: Scores, targets_NK: Decisions) -> Decisions:
    """Decisions on each fifth of the images under thresholds tuned on the other four.

    Tuning and measuring on the same images flatters rare labels; this does not.
    """
    images = len(scores_NK)
    fold_N = seeded(0, "threshold folds").permutation(np.arange(images) % min(FOLDS, max(images, 1)))
    decisions_NK = np.zeros(scores_NK.shape, np.uint8)
    for fold in np.unique(fold_N):
        inside = fold_N == fold
        thresholds_K = tune_per_label(scores_NK[~inside], targets_NK[~inside])
        decisions_NK[inside] = decide(scores_NK[inside], thresholds_K)
    return decisions_NK
