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
    # prior: the head's bias starts at the log-odds of each label in training (Lin et al. 2017)
    head_bias: Literal["default", "prior"] = "default"

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


class _PerLabelLoss(Section):
    # class_balanced: each label weighed by 1 / its effective number of images (Cui et al. 2019), mean 1
    label_weight: Literal["none", "class_balanced"] = "none"
    class_balanced_beta: Decay = 0.999


class BceLoss(_PerLabelLoss):
    """Binary cross-entropy on logits."""

    name: Literal["bce"] = "bce"
    pos_weight: Literal["none", "balanced"] = "none"  # balanced: negatives / positives in training
    pos_weight_cap: Positive = 10.0
    smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0  # targets in [smoothing, 1 - smoothing]


class FocalLoss(_PerLabelLoss):
    """Binary cross-entropy times (1 - score of the truth)^gamma (Lin et al. 2017)."""

    name: Literal["focal"]
    gamma: NonNegative = 2.0
    alpha: Share | None = None  # weight of positives, 1 - alpha of negatives; none: both 1


class AsymmetricLoss(_PerLabelLoss):
    """ASL (Ridnik et al. 2021): focal with a gamma of its own for negatives, which are dropped below `clip`."""

    name: Literal["asymmetric"]
    gamma_negative: NonNegative = 4.0
    gamma_positive: NonNegative = 0.0
    clip: Annotated[Number, Field(ge=0, lt=1)] = 0.05


class BceSoftF1Loss(Section):
    """A mixture: (1 - share) of BCE and `share` of soft F1."""

    name: Literal["bce_soft_f1"]
    share: Share = 0.5
    average: Literal["micro", "macro", "weighted"] = "macro"


class SoftF1Loss(Section):
    """1 - F1 of sigmoid scores over a batch, counts taken softly."""

    name: Literal["soft_f1"]
    average: Literal["micro", "macro", "weighted"] = "macro"


class SoftmaxF1Loss(Section):
    """The original work's failed loss: softmax over labels, one F1 over the batch. For comparison only."""

    name: Literal["failed_softmax_f1"]


LossSpec = Annotated[
    BceLoss | FocalLoss | AsymmetricLoss | SoftF1Loss | BceSoftF1Loss | SoftmaxF1Loss, Discriminator("name")
]


class SamplingSpec(Section):
    """Which training images an epoch takes, drawn anew each epoch (`pipeline/data/sampling.py`)."""

    name: Literal["each_once", "repeat_factor", "inverse_frequency"] = "each_once"
    threshold: Share = 0.1  # repeat_factor: an image whose rarest label is rarer than this share is repeated
    blanks: Share = 1.0  # the share of the images without a label that an epoch takes


class _Optimizer(Section):
    weight_decay: NonNegative = 0.0
    decay_bias_and_norm: bool = False
    lr_backbone: Positive = 1.0  # the learning rate of all but the head, as a factor on lr


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
    brightness: NonNegative = 0.0  # colour jitter: a factor within 1 +- this
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    trivial: bool = False  # one operation on colour, of random kind and strength (TrivialAugment, 2021)
    erase: Share = 0.0  # probability that a rectangle is erased (Zhong et al. 2020)
    erase_area: tuple[Share, Share] = (0.02, 0.33)
    mixup: NonNegative = 0.0  # alpha of its Beta distribution; 0: none
    cutmix: NonNegative = 0.0  # alpha; with mixup too, each picture takes one of them
    mix_share: Share = 1.0  # of the pictures that mixup and cutmix mix

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSpec:
        pairs = {"crop": self.crop, "crop_ratio": self.crop_ratio, "erase_area": self.erase_area}
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
    # with model.trainable head: the frozen part sees so many views of each picture, once; epochs take them in
    # turn, drawn as the first epochs draw theirs (as many views as epochs train as without); null: anew each epoch
    feature_views: Count | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    best_by: Literal[MetricName, "loss"] = "f1_micro"
    sampling: SamplingSpec = SamplingSpec()
    ema_epochs: NonNegative = 0.0  # validate and keep the weights averaged over about so many epochs; 0: none
    clip_norm: NonNegative = 0.0  # gradients are scaled down to this norm; 0: as they are
    head_first_epochs: Annotated[int, Field(ge=0)] = 0  # only the head learns so long (LP-FT, Kumar 2022)
    patience_epochs: Count | None = None  # stop when best_by has not improved for so many epochs
    average_flips: bool = False  # final scores are means over a picture and its mirror image
    # size of the pictures of the final scores, of validation and test; null: image_px. A network trained on
    # random crops sees objects larger than in whole pictures of that size (Touvron et al. 2019)
    score_px: Pixels | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _features_of_what_is_frozen(self) -> TrainSpec:
        if self.feature_views is not None and self.model.trainable != "head":
            raise ValueError(
                "feature_views needs model.trainable: head; a network that learns has no fixed features"
            )
        augment = self.augment
        mixed = augment.mixup or augment.cutmix or augment.erase or self.average_flips or self.score_px
        if self.feature_views is not None and mixed:
            raise ValueError(
                "feature_views keeps features of single pictures: it excludes mixup, cutmix, erase, "
                "average_flips and score_px; leave them at their defaults, or leave feature_views out"
            )
        return self

    @model_validator(mode="after")
    def _any_size(self) -> TrainSpec:
        if self.score_px is not None and (self.model.name in CNNS or self.model.name.startswith("vit_")):
            raise ValueError(f"{self.model.name} has one size of input; leave score_px out")
        return self
