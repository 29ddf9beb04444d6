"""The `train:` section: everything a cell's weights depend on, besides its data."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, ValidationInfo, model_validator

from pipeline.model_names import CNNS, MODEL_NAMES
from pipeline.spec.fields import (
    Count,
    Decay,
    MetricName,
    NonNegative,
    Number,
    Pixels,
    Positive,
    Section,
    Seed,
    Share,
    resolve_path,
)


def _known_model(name: Any) -> Any:
    if isinstance(name, str) and name not in MODEL_NAMES:
        close = get_close_matches(name, MODEL_NAMES, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(MODEL_NAMES)}"
        raise ValueError(f"unknown model; {hint}")
    return name


_NAMED_WEIGHTS = re.compile(r"[A-Z0-9]+(_[A-Z0-9]+)*_V\d+")


def _weights(value: Any, info: ValidationInfo) -> Any:
    if value == "DEFAULT":
        raise ValueError("name the weights, e.g. IMAGENET1K_V1: DEFAULT means others in another torchvision")
    if value == "none" or (isinstance(value, str) and _NAMED_WEIGHTS.fullmatch(value)):
        return value
    return resolve_path(value, info)


class ModelSpec(Section):
    """A network, where its weights come from, and what of it is trained."""

    name: Annotated[str, BeforeValidator(_known_model)] = "cnn3"
    # none, torchvision's name for them (IMAGENET1K_V1), or a file
    weights: Annotated[str, BeforeValidator(_weights)] = "none"
    trainable: Literal["all", "head"] = "all"

    @model_validator(mode="after")
    def _sensible(self) -> ModelSpec:
        if self.name in CNNS and self.named_weights:
            raise ValueError(f"{self.name} has no published weights; write weights: none or a file")
        if self.trainable == "head" and self.weights == "none":
            raise ValueError("trainable: head on random weights learns nothing; give weights, or train all")
        return self

    @property
    def named_weights(self) -> bool:
        """True for torchvision's own weights, which are fetched by name."""
        return _NAMED_WEIGHTS.fullmatch(self.weights) is not None

    @property
    def weights_file(self) -> str | None:
        """The path of a weights file, if that is what `weights` is."""
        return None if self.weights == "none" or self.named_weights else self.weights


class BceLoss(Section):
    """Binary cross-entropy on logits."""

    name: Literal["bce"] = "bce"
    pos_weight: Literal["none", "balanced"] = "none"  # balanced: negatives / positives in training
    pos_weight_cap: Positive = 10.0


class SoftF1Loss(Section):
    """1 - F1 of sigmoid scores over a batch, counts taken softly."""

    name: Literal["soft_f1"]
    average: Literal["micro", "macro", "weighted"] = "macro"


class SoftmaxF1Loss(Section):
    """The original work's failed loss: softmax over labels, one F1 over the batch. For comparison only."""

    name: Literal["failed_softmax_f1"]


LossSpec = Annotated[BceLoss | SoftF1Loss | SoftmaxF1Loss, Discriminator("name")]


class _Optimizer(Section):
    weight_decay: NonNegative = 0.0
    decay_bias_and_norm: bool = False


class Sgd(_Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum."""

    name: Literal["sgd"]
    lr: Positive = 0.01
    momentum: Share = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adam(_Optimizer):
    """Adam (Kingma & Ba 2015)."""

    name: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"]
    lr: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01


class RmsProp(_Optimizer):
    """RMSprop; `alpha` is the smoothing constant."""

    name: Literal["rmsprop"]
    lr: Positive = 0.01
    alpha: Share = 0.99
    momentum: Share = 0.0
    eps: Positive = 1e-8


class Adadelta(_Optimizer):
    """Adadelta (Zeiler 2012)."""

    name: Literal["adadelta"]
    lr: Positive = 1.0
    rho: Share = 0.9
    eps: Positive = 1e-6


OptimizerSpec = Annotated[Sgd | Adam | AdamW | RmsProp | Adadelta, Discriminator("name")]


class _Schedule(Section):
    warmup_epochs: NonNegative = 0.0  # linear from 0 to the learning rate


class Constant(_Schedule):
    """The learning rate as it is."""

    name: Literal["constant"] = "constant"


class Cosine(_Schedule):
    """Half a cosine from the learning rate to `final_share` of it (Loshchilov & Hutter 2017)."""

    name: Literal["cosine"]
    final_share: Share = 0.0


class Step(_Schedule):
    """Times `factor` every `every_epochs`."""

    name: Literal["step"]
    every_epochs: Positive = 5.0
    factor: Share = 0.1


class OneCycle(_Schedule):
    """Up to the learning rate and down again by cosines, over the whole run (Smith & Topin 2018)."""

    name: Literal["one_cycle"]
    up_share: Share = 0.3
    start_share: Share = 0.04
    final_share: Share = 4e-6


class Plateau(_Schedule):
    """Times `factor` when `train.best_by` has not improved for `patience_epochs`."""

    name: Literal["plateau"]
    factor: Share = 0.1
    patience_epochs: Count = 3


ScheduleSpec = Annotated[Constant | Cosine | Step | OneCycle | Plateau, Discriminator("name")]


class AugmentSpec(Section):
    """Random changes to training pictures, drawn once per image and epoch."""

    hflip: Share = 0.5  # probability
    vflip: Share = 0.0  # probability
    crop: tuple[Share, Share] | None = None  # area of a random-resized crop, e.g. [0.35, 1]
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)  # width / height
    rotate_deg: Annotated[Number, Field(ge=0, le=180)] = 0.0  # uniform within +- this

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSpec:
        for name, pair in (("crop", self.crop), ("crop_ratio", self.crop_ratio)):
            if pair and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} is [smallest, largest] above 0, got [{pair[0]:g}, {pair[1]:g}]")
        return self


class TrainSpec(Section):
    """Everything a cell's weights depend on, besides its data."""

    model: ModelSpec = ModelSpec()
    image_px: Pixels = 128  # the network's input; independent of data.size_px
    augment: AugmentSpec = AugmentSpec()
    loss: LossSpec = BceLoss()
    optimizer: OptimizerSpec = Adam()
    schedule: ScheduleSpec = Constant()
    epochs: Count = 15
    batch_size: Count = 64
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    best_by: Literal[MetricName, "loss"] = "f1_micro"
    seed: Seed = 0
