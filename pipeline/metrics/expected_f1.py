"""Decisions that maximise the expected F1 of each image, from calibrated scores. Torch-free."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.metrics.multilabel import Decisions, Scores

# N images, K labels, M how many of the highest scores are predicted, Q nodes
_AT_ONCE = 2**18  # values of images x nodes x labels: 2 MiB an array, of which there are four
_PANEL = 12  # nodes of a panel


def maximise_expected_f1(scores_NK: Scores, empty_f1: float = 1.0) -> Decisions:
    """For each image the labels whose expected F1 is highest: (N, K) of 0 and 1.

    With labels independent given the image, they are the m labels with the highest scores, for some m
    (Lewis 1995); of equal scores the first. `empty_f1` is the F1 of a correctly empty decision (1, or 0 as
    in scikit-learn). At equal expectation fewer labels are predicted. Takes time of N K log K.
    """
    images, labels = scores_NK.shape
    decisions_NK = np.zeros((images, labels), np.uint8)
    nodes = quadrature(labels)
    rows = max(1, _AT_ONCE // (len(nodes[0]) * max(labels, 1)))
    for start in range(0, images, rows):
        chunk = slice(start, start + rows)
        p_NK = scores_NK[chunk].astype(np.float64)
        order_NK = np.argsort(-p_NK, axis=1, kind="stable")
        expected_NM = _expected_f1(np.take_along_axis(p_NK, order_NK, axis=1), nodes)
        negative_N = empty_f1 * np.prod(1 - p_NK, axis=1)
        expected_NM = np.concatenate([negative_N[:, None], expected_NM], axis=1)
        size_N = np.argmax(expected_NM - 1e-12 * np.arange(labels + 1), axis=1)
        chosen_NK = (np.arange(labels) < size_N[:, None]).astype(np.uint8)
        np.put_along_axis(decisions_NK[chunk], order_NK, chosen_NK, axis=1)
    return decisions_NK


def _expected_f1(
    p_NK: npt.NDArray[np.float64], nodes: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """(N, K): the expected F1 of predicting the first m labels, m = 1, ... K.

    With A true labels among these and B among the others it is E[2 A / (m + A + B)]. 1 / n is the integral
    of t^(n - 1) from 0 to 1, and labels are independent. So it is the integral of
    2 t^(m - 1) G(t) (r_1(t) + ... + r_m(t)), where G is the product over all labels of 1 - p + p t, and r is
    p t / (1 - p + p t). No term is negative: nothing cancels.
    """
    x_Q, weight_Q = nodes
    either_NQK = 1 - p_NK[:, None, :] * x_Q[:, None]
    sum_NQM = p_NK[:, None, :] / either_NQK
    np.cumsum(sum_NQM, axis=2, out=sum_NQM)
    # t^(m - 1), and the t of r: t^m
    sum_NQM *= np.exp(np.log1p(-x_Q)[:, None] * np.arange(1, p_NK.shape[1] + 1))
    return np.asarray(2 * np.matmul((np.prod(either_NQK, axis=2) * weight_Q)[:, None, :], sum_NQM)[:, 0])


@lru_cache(maxsize=4)
def quadrature(labels: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nodes x = 1 - t in (0, 1) and their weights (Gauss and Legendre): 12 in each of log2(labels) panels.

    The integrand is a polynomial in t of degree below 2 labels, without a negative coefficient. So its
    integral has at most the relative error of the worst power of t; high powers live near x = 0, where the
    panels become small. The error is 1e-15.
    """
    edges = [1.0]
    while labels > _PANEL and edges[-1] * labels > 4:
        edges.append(edges[-1] / 2)
    low_P = np.array([*edges[1:], 0.0])
    width_P = np.array(edges) - low_P
    nodes, weights = np.polynomial.legendre.leggauss(_PANEL)
    x_PQ = low_P[:, None] + width_P[:, None] * (nodes + 1) / 2
    return x_PQ.ravel(), (width_P[:, None] * weights / 2).ravel()
