"""The `train:` section: everything a cell's weights depend on, besides its data."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from pipeline.spec.fields import (
    Count,
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
from pipeline.spec.model_names import CNNS, MODEL_NAMES
from pipeline.spec.recipe import Adam, BceLoss, Constant, LossSpec, OptimizerSpec, SamplingSpec, ScheduleSpec


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
    # all, head, last_stage (from where the resolution falls for the last time), or a part by its name in the
    # network (layer3, features.11): it and all after it; what comes before stays frozen
    trainable: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")] = "all"
    # prior: the head's bias starts at the log-odds of each label in training (Lin et al. 2017)
    head_bias: Literal["default", "prior"] = "default"
    # units of a hidden layer (with ReLU) between the features and the labels; null: the head is one linear layer
    head_hidden: Count | None = None
    head_dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0  # of the features and of the hidden layer

    @model_validator(mode="after")
    def _sensible(self) -> ModelSpec:
        if self.name in CNNS and self.named_weights:
            raise ValueError(f"{self.name} has no published weights; write weights: none or a file")
        if self.trainable not in ("all", "head") and self.name in CNNS:
            raise ValueError(f"{self.name} has no stages; write trainable: all or head")
        close = get_close_matches(self.trainable, ("all", "head", "last_stage"), n=1, cutoff=0.8)
        if close and close[0] != self.trainable:
            raise ValueError(f"trainable: {self.trainable}: did you mean `{close[0]}`?")
        if self.trainable != "all" and self.weights == "none":
            raise ValueError(
                f"trainable: {self.trainable} on random weights learns nothing; give weights, or train all"
            )
        return self

    @property
    def named_weights(self) -> bool:
        """True for torchvision's own weights, which are fetched by name."""
        return _NAMED_WEIGHTS.fullmatch(self.weights) is not None

    @property
    def weights_file(self) -> str | None:
        """The path of a weights file, if that is what `weights` is."""
        return None if self.weights == "none" or self.named_weights else self.weights


class AugmentSpec(Section):
    """Random changes to training pictures, drawn once per image and epoch."""

    hflip: Share = 0.5  # probability
    vflip: Share = 0.0  # probability
    crop: tuple[Share, Share] | None = None  # area of a random-resized crop, e.g. [0.35, 1]
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)  # width / height
    rotate_deg: Annotated[Number, Field(ge=0, le=180)] = 0.0  # uniform within +- this
    brightness: NonNegative = 0.0  # colour jitter: a factor within 1 +- this
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    trivial_augment: bool = (
        False  # one operation on colour, of random kind and strength (TrivialAugment, 2021)
    )
    random_erasing: Share = 0.0  # probability that a rectangle is erased (Zhong et al. 2020)
    random_erasing_area: tuple[Share, Share] = (0.02, 0.33)
    mixup: NonNegative = 0.0  # alpha of its Beta distribution; 0: none
    cutmix: NonNegative = 0.0  # alpha; with mixup too, each picture takes one of them
    mix_fraction: Share = 1.0  # of the pictures that mixup and cutmix mix

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSpec:
        pairs = {
            "crop": self.crop,
            "crop_ratio": self.crop_ratio,
            "random_erasing_area": self.random_erasing_area,
        }
        for name, pair in pairs.items():
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
    # without model.trainable all: the frozen part sees so many views of each picture, once; epochs take them in
    # turn, drawn as the first epochs draw theirs (as many views as epochs train as without); null: anew each epoch
    cached_views: Count | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    monitor: Literal[MetricName, "loss"] = "f1_micro"
    sampling: SamplingSpec = SamplingSpec()
    ema_epochs: NonNegative = 0.0  # validate and keep the weights averaged over about so many epochs; 0: none
    clip_grad_norm: NonNegative = 0.0  # gradients are scaled down to this norm; 0: as they are
    freeze_backbone_epochs: Annotated[int, Field(ge=0)] = (
        0  # only the head learns so long (LP-FT, Kumar 2022)
    )
    patience_epochs: Count | None = None  # stop when monitor has not improved for so many epochs
    tta_hflip: bool = False  # final scores are means over a picture and its mirror image
    # size of the pictures of the final scores, of validation and test; null: image_px. A network trained on
    # random crops sees objects larger than in whole pictures of that size (Touvron et al. 2019)
    eval_image_px: Pixels | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _sensible(self) -> TrainSpec:
        if self.cached_views is not None and self.model.trainable == "all":
            raise ValueError(
                "cached_views needs model.trainable: head, last_stage or another part; "
                "a network that learns as a whole has no fixed features"
            )
        mixed = self.augment.mixup or self.augment.cutmix or self.augment.random_erasing
        if self.cached_views is not None and mixed:
            raise ValueError(
                "cached_views keeps features of single pictures: it excludes mixup, cutmix and erase; "
                "leave them at their defaults, or leave cached_views out"
            )
        if self.eval_image_px is not None and (self.model.name in CNNS or self.model.name.startswith("vit_")):
            raise ValueError(f"{self.model.name} has one size of input; leave eval_image_px out")
        return self
