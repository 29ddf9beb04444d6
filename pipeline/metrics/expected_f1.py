"""Decisions that maximise the expected F1 of each image, from calibrated scores. Torch-free."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.metrics.multilabel import Decisions, Scores

# N images, K labels, S number of true labels of an image
_CHUNK = 256  # images at a time


def maximise_expected_f1(scores_NK: Scores, empty_f1: float = 1.0) -> Decisions:
    """For each image the labels whose expected F1 is highest: (N, K) of 0 and 1.

    The general F-measure maximiser (Dembczynski, Waegeman, Cheng & Huellermeier 2011) with labels taken
    as independent given the image. `empty_f1` is the F1 of a correctly empty decision (1, or 0 as in
    scikit-learn). At equal expectation fewer labels are predicted.
    """
    decisions_NK = np.zeros(scores_NK.shape, np.uint8)
    for start in range(0, len(scores_NK), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        decisions_NK[chunk] = _maximise(scores_NK[chunk].astype(np.float64), empty_f1)
    return decisions_NK


def _maximise(p_NK: npt.NDArray[np.float64], empty_f1: float) -> Decisions:
    images, labels = p_NK.shape
    sizes = np.arange(1, labels + 1)
    # joint_NKS[n, k, s - 1]: the probability that label k is true and s labels are
    joint_NKS = np.stack([p_NK[:, [k]] * _counts(np.delete(p_NK, k, axis=1)) for k in range(labels)], axis=1)
    gain_NKM = joint_NKS @ (2 / (sizes[:, None] + sizes[None, :]))  # of predicting k among m labels
    order_NKM = np.argsort(-gain_NKM, axis=1, kind="stable")
    best_NKM = np.take_along_axis(gain_NKM, order_NKM, axis=1)
    # expected F1 of the best m labels, m = 0 first
    negative_N = empty_f1 * np.prod(1 - p_NK, axis=1)
    per_size = [negative_N, *(best_NKM[:, : m + 1, m].sum(axis=1) for m in range(labels))]
    chosen_N = np.argmax(np.stack(per_size, axis=1) - 1e-12 * np.arange(labels + 1), axis=1)
    decisions_NK = np.zeros((images, labels), np.uint8)
    for n, m in enumerate(chosen_N):
        decisions_NK[n, order_NKM[n, :m, m - 1]] = 1
    return decisions_NK


def _counts(p_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N, K + 1): the probability of each number of true labels (Poisson binomial)."""
    counts_NS = np.zeros((len(p_NK), p_NK.shape[1] + 1))
    counts_NS[:, 0] = 1
    for k, p_N in enumerate(p_NK.T):
        counts_NS[:, 1 : k + 2] = (
            counts_NS[:, 1 : k + 2] * (1 - p_N)[:, None] + counts_NS[:, : k + 1] * p_N[:, None]
        )
        counts_NS[:, 0] *= 1 - p_N
    return counts_NS
