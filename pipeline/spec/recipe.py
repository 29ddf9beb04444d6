"""What a training step is made of: losses, sampling, optimizers, schedules, each with its defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, model_validator

from pipeline.spec.fields import Count, Decay, NonNegative, Number, Positive, Section, Share


class _PerLabelLoss(Section):
    # class_balanced: each label weighed by 1 / its effective number of images (Cui et al. 2019), mean 1
    label_weight: Literal["none", "class_balanced"] = "none"
    class_balanced_beta: Decay = 0.999


class BceLoss(_PerLabelLoss):
    """Binary cross-entropy on logits."""

    name: Literal["bce"] = "bce"
    pos_weight: Literal["none", "balanced"] = "none"  # balanced: negatives / positives in training
    pos_weight_cap: Positive = 10.0
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0  # targets in [s, 1 - s]


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
    """A mixture: (1 - f) of BCE and f of soft F1, f being `soft_f1_fraction`."""

    name: Literal["bce_soft_f1"]
    soft_f1_fraction: Share = 0.5
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
    negatives: Share = 1.0  # the share of the images without a label that an epoch takes


class _Optimizer(Section):
    weight_decay: NonNegative = 0.0
    decay_bias_and_norm: bool = False
    backbone_lr_factor: Positive = 1.0  # the learning rate of all but the head, as a factor on lr


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
    """Half a cosine from the learning rate to `final_fraction` of it (Loshchilov & Hutter 2017)."""

    name: Literal["cosine"]
    final_fraction: Share = 0.0


class Step(_Schedule):
    """Times `factor` every `every_epochs`."""

    name: Literal["step"]
    every_epochs: Positive = 5.0
    factor: Share = 0.1


class OneCycle(_Schedule):
    """Up to the learning rate and down again by cosines, over the whole run (Smith & Topin 2018)."""

    name: Literal["one_cycle"]
    pct_start: Share = 0.3
    start_fraction: Share = 0.04
    final_fraction: Share = 4e-6


class Plateau(_Schedule):
    """Times `factor` when `train.monitor` has not improved for `patience_epochs`."""

    name: Literal["plateau"]
    factor: Share = 0.1
    patience_epochs: Count = 3


ScheduleSpec = Annotated[Constant | Cosine | Step | OneCycle | Plateau, Discriminator("name")]
