"""What makes logits of a network's features: `train.model.head`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field

from pipeline.spec.fields import SAME_BATCHES, Positive, Section


class LinearHead(Section):
    """A linear layer on the pooled features; with `head_hidden` two."""

    name: Literal["linear"] = "linear"


class CsraHead(Section):
    """Class-specific residual attention (Zhu & Wu 2021): each label looks where in the picture it scores highest.

    It takes the features before the pooling, of every place of a picture or of every patch token, so `cached_views`
    keeps all of them. What a network has between its pooling and its last layer works at every place.
    """

    name: Literal["csra"]
    heads: Annotated[Literal[1, 2, 4, 6, 8], Field(json_schema_extra=SAME_BATCHES)] = 1
    """How many attentions are added up, each sharper than the last and the last one a maximum. The paper: 1 to 8."""
    attention_weight: Annotated[Positive, Field(json_schema_extra=SAME_BATCHES)] = 0.1
    """How much the attended place counts beside the mean of all: the paper's lambda, 0.1 to 1."""


HeadSpec = Annotated[LinearHead | CsraHead, Discriminator("name")]
