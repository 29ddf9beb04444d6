"""Heads: what makes logits of features. A new one is a section in `pipeline/spec/heads.py` and an entry here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import TrainingError
from pipeline.spec import CsraHead, ModelSpec

# how many attentions -> their temperatures, as the authors' code has them
TEMPERATURES = {
    1: (1.0,), 2: (1.0, math.inf), 4: (1.0, 2.0, 4.0, math.inf), 6: (1.0, 2.0, 3.0, 4.0, 5.0, math.inf),
    8: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.inf),
}  # fmt: skip
# B batch, D features, N places of a picture, H attentions, K labels


class Features(NamedTuple):
    """What a head takes: how many features, which axis they are, how many tokens stand before those of places."""

    number: int
    axis: int = 1
    prefix: int = 0

    def places(self, maps: Tensor) -> Tensor:
        """(B, N, D) of maps (B, D, rows, columns) or (B, rows, columns, D), or of tokens (B, N, D)."""
        if maps.ndim == 3:
            return maps[:, self.prefix :]
        return maps.flatten(2).transpose(1, 2) if self.axis == 1 else maps.flatten(1, 2)


class Csra(nn.Module):
    """Class-specific residual attention (Zhu & Wu, ICCV 2021), from unpooled features to (B, K).

    A label's logit is the mean of its scores over all places, and `attention_weight` times their mean weighted by
    a softmax of T times the scores. Several attentions have classifiers of their own and growing T, the last one
    infinite: a maximum. As in the authors' code classifiers are of length 1. One bias a label is ours, for `head_bias`.
    """

    def __init__(self, spec: CsraHead, features: Features, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.features, self.attention_weight = features, spec.attention_weight
        self.temperatures = TEMPERATURES[spec.heads]
        self.dropout = nn.Dropout(dropout)
        self.classifiers_HKD = nn.Parameter(torch.empty(spec.heads, num_labels, features.number))
        # as torch draws a linear layer: of its length, which counts for nothing else, the rate of learning depends
        nn.init.uniform_(self.classifiers_HKD, -(features.number**-0.5), features.number**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_labels))

    def forward(self, maps: Tensor) -> Tensor:
        """Logits (B, K) of maps or tokens of any size."""
        places_BND = self.dropout(self.features.places(maps))
        classifiers_RD = functional.normalize(self.classifiers_HKD, dim=2).flatten(0, 1)
        scores_BNR = functional.linear(places_BND, classifiers_RD).float()  # a mean of many places
        logits_BK = self.bias.float()
        for scores_BNK, temperature in zip(
            scores_BNR.chunk(len(self.temperatures), dim=2), self.temperatures, strict=True
        ):
            if temperature == math.inf:
                attended_BK = scores_BNK.amax(dim=1)
            else:
                attended_BK = (scores_BNK * torch.softmax(temperature * scores_BNK, dim=1)).sum(dim=1)
            logits_BK = logits_BK + scores_BNK.mean(dim=1) + self.attention_weight * attended_BK
        return logits_BK

    def pooled(self, maps: Tensor) -> Tensor:
        """(B, D): the mean over places, as an embedding of the picture."""
        return self.features.places(maps).mean(dim=1)


def _csra(model: ModelSpec, features: Features, num_labels: int) -> nn.Module:
    assert isinstance(model.head, CsraHead)
    return Csra(model.head, features, num_labels, model.head_dropout)


# of the heads that take features before the pooling: what builds them
ON_MAPS: dict[str, Callable[[ModelSpec, Features, int], nn.Module]] = {"csra": _csra}


def without_maps(name: str, head: str) -> TrainingError:
    """Of a network whose head takes one row of features and nothing else."""
    return TrainingError(
        f"train.model.head: {head} needs features of places before a pooling, and {name} gives none; leave head out, "
        "or take another network"
    )
