"""What a training step is made of: losses, sampling, optimizers, schedules, each with its defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.spec.fields import OWN, Count, Decay, NonNegative, Number, Positive, Section, Share
from pipeline.spec.own_code import OwnCode, is_own


class _PerLabelLoss(Section):
    label_weight: Literal["none", "class_balanced"] = "none"
    """`class_balanced` weighs each label by 1 / its effective number of images, mean 1 (Cui et al. 2019).

    Use it where some labels are much rarer than others.
    """
    class_balanced_beta: Decay = 0.999
    """Only with `class_balanced`: nearer to 1, rare labels weigh more; at 0 all weigh the same."""


class BceLoss(_PerLabelLoss):
    """Binary cross-entropy on logits."""

    name: Literal["bce"] = "bce"
    pos_weight: Literal["none", "balanced"] = "none"
    """`balanced` weighs a label's positives by negatives / positives in training. It raises recall."""
    pos_weight_cap: Positive = 10.0
    """Only with `balanced`: the largest weight, so that very rare labels do not dominate."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0
    """At s, targets are s and 1 - s instead of 0 and 1 (Szegedy et al. 2016). Use it for noisy labels."""


class FocalLoss(_PerLabelLoss):
    """Binary cross-entropy times (1 - score of the truth)^gamma (Lin et al. 2017)."""

    name: Literal["focal"]
    gamma: NonNegative = 2.0
    """Higher, easy images count less. 0: plain binary cross-entropy."""
    alpha: Share | None = None
    """The weight of positives; negatives get 1 - alpha. null: both weigh 1."""


class AsymmetricLoss(_PerLabelLoss):
    """ASL (Ridnik et al. 2021): focal with a gamma of its own for negatives, which are dropped below `clip`."""

    name: Literal["asymmetric"]
    gamma_negative: NonNegative = 4.0
    """The focal exponent of negatives. Higher, easy negatives count less."""
    gamma_positive: NonNegative = 0.0
    """The focal exponent of positives. Keep it below `gamma_negative`."""
    clip: Annotated[Number, Field(ge=0, lt=1)] = 0.05
    """Scores of negatives are lowered by this first, so those below it have no loss. 0: none."""


class BceSoftF1Loss(Section):
    """A mixture: (1 - f) of BCE and f of soft F1, f being `soft_f1_fraction`."""

    name: Literal["bce_soft_f1"]
    soft_f1_fraction: Share = 0.5
    """f: 0 is BCE alone, 1 is soft F1 alone."""
    average: Literal["micro", "macro", "weighted"] = "macro"
    """`micro` counts over all labels, `macro` takes the mean over labels, `weighted` weighs it by positives."""


class SoftF1Loss(Section):
    """1 - F1 of sigmoid scores over a batch, counts taken softly."""

    name: Literal["soft_f1"]
    average: Literal["micro", "macro", "weighted"] = "macro"
    """`micro` counts over all labels, `macro` takes the mean over labels, `weighted` weighs it by positives."""


class SoftmaxF1Loss(Section):
    """The original work's failed loss: softmax over labels, one F1 over the batch. For comparison only."""

    name: Literal["failed_softmax_f1"]


class OwnLoss(OwnCode):
    """A loss of your own: `function(logits, targets, **options)`, both (B, K), to one number (docs/extending.md)."""


def _kind(loss: Any) -> Any:
    """What chooses the section of a loss: its name, and for all code of users' own one word."""
    name = loss.get("name") if isinstance(loss, dict) else getattr(loss, "name", None)
    return OWN if isinstance(name, str) and is_own(name) else name


LossSpec = Annotated[
    Annotated[BceLoss, Tag("bce")]
    | Annotated[FocalLoss, Tag("focal")]
    | Annotated[AsymmetricLoss, Tag("asymmetric")]
    | Annotated[SoftF1Loss, Tag("soft_f1")]
    | Annotated[BceSoftF1Loss, Tag("bce_soft_f1")]
    | Annotated[SoftmaxF1Loss, Tag("failed_softmax_f1")]
    | Annotated[OwnLoss, Tag(OWN)],
    Discriminator(_kind),
]


class SamplingSpec(Section):
    """Which training images an epoch takes, drawn anew each epoch (`pipeline/data/sampling.py`)."""

    name: Literal["each_once", "repeat_factor", "inverse_frequency"] = "each_once"
    """How often an image comes. `repeat_factor` repeats images with rare labels (Gupta et al. 2019).

    `inverse_frequency` draws an image in proportion to 1 / the frequency of its rarest label.
    """
    threshold: Share = 0.1
    """Only with `repeat_factor`: a label of frequency f below this has its images sqrt(threshold / f) times."""
    negatives: Share = 1.0
    """A factor on how often negative images (without any label) come. 1: as often as without it, 0: never."""


class ParameterGroup(Section):
    """Parameters that share a rate or a weight decay of their own."""

    parameters: Annotated[str, Field(min_length=1)]
    """A pattern of their names in the network, e.g. `layer4.*` or `*.bn?.*`; `*` stands for dots too."""
    lr_factor: Positive | None = None
    """A factor on their learning rate, besides `backbone_lr_factor` and `layer_decay`. null: as the others."""
    weight_decay: NonNegative | None = None
    """Their weight decay, whatever `decay_bias_and_norm` says. null: as the others."""

    @model_validator(mode="after")
    def _changes_something(self) -> ParameterGroup:
        if self.lr_factor is None and self.weight_decay is None:
            raise ValueError("changes nothing; give lr_factor or weight_decay")
        return self


class _Optimizer(Section):
    weight_decay: NonNegative = 0.0
    """Pulls weights towards 0, against overfitting, by an L2 penalty in the gradient."""
    decay_bias_and_norm: bool = False
    """Decays biases and the weights of norm layers too, which is usually left out."""
    backbone_lr_factor: Positive = 1.0
    """The learning rate of all but the head, as a factor on `lr`. Below 1 for pretrained weights, e.g. 0.1."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Each layer learns at this times the rate of the next one; the head at `lr` (BEiT, Bao et al. 2022). 1: none.

    Layers are blocks: a `vit_b` has 12 of them, a `resnet50` 16. For transformers 0.65 to 0.9; the deeper the
    network, the nearer to 1. It comes on top of `backbone_lr_factor`.
    """
    groups: tuple[ParameterGroup, ...] = ()
    """Rates and weight decay of parameters by their names. Where several match, the later one wins."""


class Sgd(_Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum."""

    name: Literal["sgd"]
    lr: Positive = 0.01
    """The learning rate, before `schedule`. The first thing to sweep, in steps of about 3."""
    momentum: Share = 0.9
    """How much of the last step goes into the next one. 0: none."""
    nesterov: bool = False
    """Nesterov's momentum, which looks ahead (Sutskever et al. 2013). Needs a momentum above 0."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adam(_Optimizer):
    """Adam (Kingma & Ba 2015)."""

    name: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    """The learning rate, before `schedule`. The first thing to sweep, in steps of about 3."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the denominator of a step, for numerical stability."""


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"]
    lr: Positive = 1e-3
    """The learning rate, before `schedule`. The first thing to sweep, in steps of about 3."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the denominator of a step, for numerical stability."""
    weight_decay: NonNegative = 0.01
    """Pulls weights towards 0 by lr times this at each step, apart from the gradient."""


class RmsProp(_Optimizer):
    """RMSprop (Tieleman & Hinton 2012)."""

    name: Literal["rmsprop"]
    lr: Positive = 0.01
    """The learning rate, before `schedule`. The first thing to sweep, in steps of about 3."""
    alpha: Share = 0.99
    """Decay rate of the running mean of the squared gradient."""
    momentum: Share = 0.0
    """How much of the last step goes into the next one. 0: none."""
    eps: Positive = 1e-8
    """Added to the denominator of a step, for numerical stability."""


class Adadelta(_Optimizer):
    """Adadelta (Zeiler 2012)."""

    name: Literal["adadelta"]
    lr: Positive = 1.0
    """The learning rate, before `schedule`. The first thing to sweep, in steps of about 3."""
    rho: Share = 0.9
    """Decay rate of the running means of squared gradients and steps."""
    eps: Positive = 1e-6
    """Added under both square roots, for numerical stability; it also sets the size of the first steps."""


OptimizerSpec = Annotated[Sgd | Adam | AdamW | RmsProp | Adadelta, Discriminator("name")]


class _Schedule(Section):
    warmup_epochs: NonNegative = 0.0
    """Epochs in which the rate first rises linearly from 0; fractions are allowed. Use it with high rates."""


class Constant(_Schedule):
    """The learning rate as it is."""

    name: Literal["constant"] = "constant"


class Cosine(_Schedule):
    """Half a cosine from the learning rate to `final_fraction` of it (Loshchilov & Hutter 2017)."""

    name: Literal["cosine"]
    final_fraction: Share = 0.0
    """The learning rate at the end, as a fraction of `lr`."""


class CosineRestarts(_Schedule):
    """Cosines that begin anew at the learning rate: warm restarts (SGDR, Loshchilov & Hutter 2017).

    The best epochs lie at the ends of cycles. 3 cycles of 5, 10 and 20 epochs take 35 epochs.
    """

    name: Literal["cosine_restarts"]
    first_epochs: Positive = 5.0
    """The length of the first cycle in epochs, counted after the warm-up."""
    factor: Annotated[Number, Field(ge=1)] = 2.0
    """How many times as long each cycle is as the one before. 1: all are equally long."""
    final_fraction: Share = 0.0
    """The learning rate at the end of a cycle, as a fraction of `lr`."""


class Step(_Schedule):
    """The learning rate times `factor` every `every_epochs`."""

    name: Literal["step"]
    every_epochs: Positive = 5.0
    """Epochs between two falls of the rate, counted after the warm-up."""
    factor: Share = 0.1
    """What the rate is multiplied by at each fall."""


class OneCycle(_Schedule):
    """Up to the learning rate and down again by cosines, over the whole run (Smith & Topin 2018)."""

    name: Literal["one_cycle"]
    pct_start: Share = 0.3
    """The fraction (not percentage) of the steps in which the rate rises, as torch's OneCycleLR has it."""
    start_fraction: Share = 0.04
    """The learning rate at the start, as a fraction of `lr`."""
    final_fraction: Share = 4e-6
    """The learning rate at the last step, as a fraction of `lr`."""
    momentum: tuple[Share, Share] | None = Field(default=(0.85, 0.95), json_schema_extra={"introduced": None})
    """[lowest, highest] momentum: it falls while the rate rises and rises while that falls, as in the paper.

    It takes the place of the optimizer's `momentum`, or of the first of its `betas`; a momentum of 0 stays.
    null: the optimizer's own throughout.
    """

    @model_validator(mode="after")
    def _ordered(self) -> OneCycle:
        if self.momentum is not None and not self.momentum[0] <= self.momentum[1] < 1:
            raise ValueError(f"momentum is [lowest, highest] below 1, got {list(self.momentum)}")
        return self


class Plateau(_Schedule):
    """The learning rate times `factor` when `train.monitor` has not improved for `patience_epochs`."""

    name: Literal["plateau"]
    factor: Share = 0.1
    """What the rate is multiplied by at each fall."""
    patience_epochs: Count = 3
    """Epochs in a row without improvement after which the rate falls."""


ScheduleSpec = Annotated[
    Constant | Cosine | CosineRestarts | Step | OneCycle | Plateau, Discriminator("name")
]
