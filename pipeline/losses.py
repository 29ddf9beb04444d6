"""Losses by name: functions of logits (B, K) and targets (B, K) of 0 and 1, to a scalar."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.spec import BceLoss, LossSpec, SoftF1Loss

# B batch, N images, K labels
Loss = Callable[[Tensor, Tensor], Tensor]
_EPS = 1e-12


def build_loss(spec: LossSpec, pos_weight_K: Tensor | None = None) -> Loss:
    """The loss a spec names; `pos_weight_K` weighs the positives of each label in BCE."""
    if isinstance(spec, BceLoss):
        return lambda logits_BK, targets_BK: functional.binary_cross_entropy_with_logits(
            logits_BK, targets_BK, pos_weight=pos_weight_K
        )
    if isinstance(spec, SoftF1Loss):
        average = spec.average
        return lambda logits_BK, targets_BK: soft_f1_loss(logits_BK, targets_BK, average)
    return failed_softmax_f1_loss


def soft_f1_loss(logits_BK: Tensor, targets_BK: Tensor, average: str) -> Tensor:
    """1 - F1, with the sigmoid scores counted as parts of a decision.

    `micro` counts over all labels together, `macro` takes the mean over labels (one absent from the
    batch has F1 0 and no gradient), `weighted` weighs them by their positives in the batch.
    """
    scores_BK = torch.sigmoid(logits_BK)
    hits_K = (scores_BK * targets_BK).sum(dim=0)
    total_K = scores_BK.sum(dim=0) + targets_BK.sum(dim=0)
    if average == "micro":
        return 1 - 2 * hits_K.sum() / (total_K.sum() + _EPS)
    f1_K = 2 * hits_K / (total_K + _EPS)
    if average == "macro":
        return 1 - f1_K.mean()
    support_K = targets_BK.sum(dim=0)
    return 1 - (f1_K * support_K).sum() / (support_K.sum() + _EPS)


def failed_softmax_f1_loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """The original work's: softmax over the labels, one F1 over the whole batch, to repeat its failure."""
    scores_BK = torch.softmax(logits_BK, dim=1)
    hits = (scores_BK * targets_BK).sum()
    precision = hits / (scores_BK.sum() + _EPS)
    recall = hits / (targets_BK.sum() + _EPS)
    return 1 - 2 * precision * recall / (precision + recall + _EPS)


def balanced_pos_weight(targets_NK: npt.NDArray[np.uint8], cap: float) -> Tensor:
    """(K,): negatives / positives of each label in training, at most `cap`."""
    positives_K = targets_NK.sum(axis=0, dtype=np.int64)
    ratio_K = (len(targets_NK) - positives_K) / np.maximum(positives_K, 1)
    return torch.from_numpy(np.minimum(ratio_K, cap).astype(np.float32))
