"""Losses by name: functions of logits (B, K) and targets (B, K) of 0 and 1, to a scalar."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import TrainingError
from pipeline.own.frozen import own_function
from pipeline.spec import (
    AsymmetricLoss,
    BceLoss,
    BceSoftF1Loss,
    FocalLoss,
    LossSpec,
    OwnLoss,
    SoftF1Loss,
    SoftmaxF1Loss,
)
from pipeline.spec.own_code import Options, OwnCall

# B batch, N images, K labels
Loss = Callable[[Tensor, Tensor], Tensor]
_EPS = 1e-12


def build_loss(
    spec: LossSpec, targets_NK: npt.NDArray[np.uint8], device: str = "cpu", code: Path | None = None
) -> Loss:
    """The loss a spec names, on a device; what it weighs with comes from the labels of the training images.

    `code` is the frozen copy of the user's own.
    """
    if isinstance(spec, OwnLoss):
        return _own(spec, code)
    if isinstance(spec, SoftF1Loss):
        return functools.partial(soft_f1_loss, average=spec.average)
    if isinstance(spec, BceSoftF1Loss):
        return functools.partial(bce_soft_f1_loss, f1_fraction=spec.soft_f1_fraction, average=spec.average)
    if isinstance(spec, SoftmaxF1Loss):
        return failed_softmax_f1_loss
    elements: Loss
    if isinstance(spec, BceLoss):
        positive_K = None
        if spec.pos_weight == "balanced":
            positive_K = balanced_pos_weight(targets_NK, spec.pos_weight_cap).to(device)
        elements = functools.partial(_bce, smoothing=spec.label_smoothing, pos_weight=positive_K)
    elif isinstance(spec, FocalLoss):
        elements = functools.partial(focal, gamma=spec.gamma, alpha=spec.alpha)
    elif isinstance(spec, AsymmetricLoss):
        elements = functools.partial(
            asymmetric, negative=spec.gamma_negative, positive=spec.gamma_positive, clip=spec.clip
        )
    else:
        assert_never(spec)
    if spec.label_weight == "none":
        return lambda logits_BK, targets_BK: elements(logits_BK, targets_BK).mean()
    label_K = class_balanced_weight(targets_NK, spec.class_balanced_beta).to(device)
    return lambda logits_BK, targets_BK: (elements(logits_BK, targets_BK) * label_K).mean()


def _own(spec: OwnLoss, code: Path | None) -> Loss:
    """The user's own loss, held to a scalar."""
    key = "train.loss"
    function = own_function(code, OwnCall(key, spec.name, Options(spec.options)), given=2)

    def loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        value = function(logits_BK, targets_BK)
        if not isinstance(value, Tensor) or value.shape != () or not value.is_floating_point():
            found = (
                f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise TrainingError(
                f"{key}: {spec.name} returned {found}; it must return one number as a tensor, e.g. a .mean()"
            )
        return value

    return loss


def _bce(logits_BK: Tensor, targets_BK: Tensor, smoothing: float, pos_weight: Tensor | None) -> Tensor:
    if smoothing:
        targets_BK = targets_BK * (1 - 2 * smoothing) + smoothing
    return functional.binary_cross_entropy_with_logits(
        logits_BK, targets_BK, pos_weight=pos_weight, reduction="none"
    )


def focal(logits_BK: Tensor, targets_BK: Tensor, gamma: float, alpha: float | None) -> Tensor:
    """(B, K): BCE times (1 - score of the truth)^gamma; a target between 0 and 1 is a mixture of both."""
    loss_BK = asymmetric(logits_BK, targets_BK, negative=gamma, positive=gamma, clip=0.0)
    if alpha is not None:
        loss_BK = loss_BK * (alpha * targets_BK + (1 - alpha) * (1 - targets_BK))
    return loss_BK


def asymmetric(
    logits_BK: Tensor, targets_BK: Tensor, negative: float, positive: float, clip: float
) -> Tensor:
    """(B, K): ASL (Ridnik et al. 2021). Scores of negatives are lowered by `clip` first, easy ones to 0."""
    log_true_BK, log_false_BK = functional.logsigmoid(logits_BK), functional.logsigmoid(-logits_BK)
    # powers of scores are taken of their logarithms: the gradient of a root of 0 is infinite, and times 0
    # no number
    hit_BK = -log_true_BK * torch.exp(positive * log_false_BK) if positive else -log_true_BK
    if not clip:
        miss_BK = -log_false_BK * torch.exp(negative * log_true_BK) if negative else -log_false_BK
        return targets_BK * hit_BK + (1 - targets_BK) * miss_BK
    scores_BK = torch.sigmoid(logits_BK)
    is_easy_BK = scores_BK <= clip
    lowered_BK = torch.where(is_easy_BK, 0.5, scores_BK - clip)  # any score that has a logarithm
    miss_BK = -torch.log1p(-lowered_BK) * lowered_BK**negative
    return targets_BK * hit_BK + (1 - targets_BK) * torch.where(is_easy_BK, 0.0, miss_BK)


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


def bce_soft_f1_loss(logits_BK: Tensor, targets_BK: Tensor, f1_fraction: float, average: str) -> Tensor:
    """(1 - f) BCE + f soft F1: F1 as the aim, BCE's gradient where F1 has none."""
    bce = functional.binary_cross_entropy_with_logits(logits_BK, targets_BK)
    return (1 - f1_fraction) * bce + f1_fraction * soft_f1_loss(logits_BK, targets_BK, average)


def failed_softmax_f1_loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """The original work's: softmax over the labels, one F1 over the whole batch, to repeat its failure."""
    scores_BK = torch.softmax(logits_BK, dim=1)
    hits = (scores_BK * targets_BK).sum()
    precision = hits / (scores_BK.sum() + _EPS)
    recall = hits / (targets_BK.sum() + _EPS)
    return 1 - 2 * precision * recall / (precision + recall + _EPS)


def unsound_logits(loss: Loss, labels: int) -> float | None:
    """The first of some logits, from usual to saturated, where a loss or its gradient is not finite; else None."""
    for size in (0.0, 1.0, 10.0, 30.0, 100.0):
        for target in (0.0, 1.0):
            logits_BK = torch.tensor([[size] * labels, [-size] * labels], requires_grad=True)
            value = loss(logits_BK, torch.full((2, labels), target))
            (gradient_BK,) = torch.autograd.grad(value, logits_BK)
            if not (torch.isfinite(value) and torch.isfinite(gradient_BK).all()):
                return size
    return None


def balanced_pos_weight(targets_NK: npt.NDArray[np.uint8], cap: float) -> Tensor:
    """(K,): negatives / positives of each label in training, at most `cap`."""
    positives_K = targets_NK.sum(axis=0, dtype=np.int64)
    ratio_K = (len(targets_NK) - positives_K) / np.maximum(positives_K, 1)
    return torch.from_numpy(np.minimum(ratio_K, cap).astype(np.float32))


def class_balanced_weight(targets_NK: npt.NDArray[np.uint8], beta: float) -> Tensor:
    """(K,): (1 - beta) / (1 - beta^n) of a label with n images, scaled to mean 1 (Cui et al. 2019)."""
    positives_K = np.maximum(targets_NK.sum(axis=0, dtype=np.int64), 1)
    weight_K = (1 - beta) / (1 - beta**positives_K)
    return torch.from_numpy((weight_K / weight_K.mean()).astype(np.float32))
