"""The `train:` section: everything a cell's weights depend on, besides its data."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from pipeline.spec.fields import (
    SAME_BATCHES,
    SAME_BATCHES_OF_PIXELS,
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
from pipeline.spec.heads import HeadSpec, LinearHead
from pipeline.spec.model_choice import (
    PRETRAINED,
    known_model,
    of_timm,
    refuse_weights_of_others,
    with_default_weights,
)
from pipeline.spec.model_names import CNNS, IMAGENET, OTHER_NORMALISATIONS, Preprocessing, is_bicubic
from pipeline.spec.own_code import Options, OptionsOf, OwnCall, OwnCode, own_calls, refuse_misfits
from pipeline.spec.recipe import Adam, BceLoss, Constant, LossSpec, OptimizerSpec, SamplingSpec, ScheduleSpec
from pipeline.spec.timm_catalogue import PREFIX

_NAMED_WEIGHTS = re.compile(r"[A-Z0-9]+(_[A-Z0-9]+)*_V\d+")


def _weights(value: Any, info: ValidationInfo) -> Any:
    if value == "DEFAULT":
        raise ValueError("name the weights, e.g. IMAGENET1K_V1: DEFAULT means others in another torchvision")
    if value in ("none", PRETRAINED) or (isinstance(value, str) and _NAMED_WEIGHTS.fullmatch(value)):
        return value
    path = resolve_path(value, info)
    is_of_timm = str(info.data.get("name")).startswith(PREFIX)
    published = (
        "pretrained with a tag in its name" if is_of_timm else "IMAGENET1K_V1 or another of torchvision's"
    )
    is_word = isinstance(value, bool) or (isinstance(value, str) and re.fullmatch(r"\w*", value))
    if is_word and info.context and not (isinstance(path, str) and Path(path).exists()):
        raise ValueError(f"name published weights, {published}, or the path of a file, or write none")
    return path


class ModelSpec(Section):
    """A network, where its weights come from, and what of it is trained."""

    name: Annotated[str, BeforeValidator(known_model)] = "cnn3"
    """`cnn2`, `cnn3` (small, from random weights), a network of torchvision, or one of timm (`timm/...`).

    resnet, wide_resnet, resnext, regnet, mobilenet, efficientnet, convnext, densenet, vit and swin, e.g.
    `resnet34` or `convnext_tiny`; all names are in `pipeline/spec/model_names.py`. `timm/convnext_tiny.fb_in22k` is
    timm's network with the weights of that tag; timm is installed by `pip install 'labelgrid[timm]'`.
    `package.module:function` is one of your own (docs/extending.md).
    """
    options: OptionsOf = Field(default_factory=Options)
    """Keyword arguments of a function of your own that makes the network."""
    weights: Annotated[str, BeforeValidator(_weights)] = "none"
    """`none` (random), torchvision's name for published weights (`IMAGENET1K_V1`), or the path of a file.

    `pretrained`: the weights that the tag in a name of timm stands for; left out, they are taken too. Use published
    weights for photographs; a file (torch's, or safetensors) holds the weights of the same network. Pictures are
    normalised and interpolated as the network's published weights want it, also for a file; for `none` by ImageNet's
    constants and bilinearly, or as timm says of its own.
    """
    trainable: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")] = "all"
    """What is trained: `all`, `head`, `last_stage` (after the last loss of resolution), or a part by its name.

    A part, e.g. `layer3` or `features.11`, is trained with all that follows it; what comes before is frozen.
    """
    head: HeadSpec = Field(default=LinearHead(), json_schema_extra=SAME_BATCHES_OF_PIXELS)
    """What makes logits of the features."""
    head_bias: Literal["default", "prior"] = Field(default="default", json_schema_extra=SAME_BATCHES)
    """`prior` starts the head's bias at the log-odds of each label in training (Lin et al. 2017).

    Use it where labels are rare: the first epochs need not learn that.
    """
    head_hidden: Count | None = Field(default=None, json_schema_extra=SAME_BATCHES)
    """Units of a hidden layer (with ReLU) between features and labels. null: the head is one linear layer."""
    head_dropout: Annotated[Number, Field(ge=0, lt=1, json_schema_extra=SAME_BATCHES)] = 0.0
    """The dropout probability of the features and of the hidden layer, against overfitting of the head."""

    _default_weights = model_validator(mode="before")(with_default_weights)

    @model_validator(mode="after")
    def _sensible(self) -> ModelSpec:
        refuse_weights_of_others(self.name, self.weights, is_named=self.named_weights)
        refuse_misfits(self.name, self.options, self.trainable)
        if self.trainable not in ("all", "head") and self.name in CNNS:
            raise ValueError(f"{self.name} has no stages; write trainable: all or head")
        if self.head.name == "csra" and self.name in CNNS:
            raise ValueError(
                f"{self.name} flattens its maps, and head: csra needs them; leave head out, or take another network"
            )
        if self.head.name == "csra" and self.head_hidden:
            raise ValueError("head_hidden is of the linear head; leave it out, or leave head: csra out")
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
        """True for the published weights of torchvision or timm, which are fetched by name."""
        return self.weights == PRETRAINED or _NAMED_WEIGHTS.fullmatch(self.weights) is not None

    @property
    def weights_file(self) -> str | None:
        """The path of a weights file, if that is what `weights` is."""
        return None if self.weights == "none" or self.named_weights else self.weights

    @property
    def has_one_size(self) -> bool:
        """Whether the network, once built, takes pictures of no other size."""
        known = of_timm(self.name)
        return self.name in CNNS or self.name.startswith("vit_") or (known is not None and known.is_fixed)

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the input: the published weights' own, for a file of this network too; ImageNet's for random weights.

        A network of timm has what timm says of it, whatever its weights.
        """
        if (known := of_timm(self.name)) is not None:
            return known.preprocessing
        if self.weights == "none":
            return IMAGENET
        mean, std = OTHER_NORMALISATIONS.get(self.name, IMAGENET[:2])
        return Preprocessing(mean, std, "bicubic" if is_bicubic(self.name, self.weights) else "bilinear")


class AugmentSpec(Section):
    """Random changes to training pictures, drawn once per image and epoch."""

    hflip: Share = 0.5
    """The probability of mirroring left and right. 0 where side matters, as in text."""
    vflip: Share = 0.0
    """The probability of mirroring top and bottom. Use it for pictures from above."""
    crop: tuple[Share, Share] | None = None
    """[smallest, largest] area of a random crop, as fractions of the picture, e.g. [0.35, 1]. null: none.

    Area, ratio and place are distributed as torchvision's RandomResizedCrop.
    """
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Only with `crop`: [smallest, largest] width / height of the crop."""
    rotate_deg: Annotated[Number, Field(ge=0, le=180)] = 0.0
    """Rotates by up to this angle in degrees to either side, uniformly; corners become black."""
    brightness: NonNegative = 0.0
    """Colour jitter: at b, brightness is multiplied by 1 - b to 1 + b, uniformly. 0: none."""
    contrast: NonNegative = 0.0
    """The same for contrast."""
    saturation: NonNegative = 0.0
    """The same for saturation."""
    trivial_augment: bool = False
    """One operation on colour a picture, of random kind and strength (TrivialAugment, Mueller & Hutter 2021).

    Of the paper's operations those that move pixels are left out; `crop` and `rotate_deg` do that.
    """
    random_erasing: Share = 0.0
    """The probability that a rectangle is erased to the mean colour (Zhong et al. 2020)."""
    random_erasing_area: tuple[Share, Share] = (0.02, 0.33)
    """[smallest, largest] area of that rectangle, as fractions of the picture."""
    mixup: NonNegative = 0.0
    """Blends pictures and labels of pairs; alpha of its Beta distribution (Zhang et al. 2018). 0: none."""
    cutmix: NonNegative = 0.0
    """Pastes a rectangle of another picture; alpha of its Beta distribution (Yun et al. 2019). 0: none.

    With `mixup` too, each picture takes one of them.
    """
    mix_fraction: Share = 1.0
    """The fraction of the pictures that `mixup` and `cutmix` mix."""
    own: OwnCode | None = None
    """A function of your own on the batch, after crop, flips and colours, before `mixup` and erasing. null: none.

    `function(images, generator, **options)`: RGB (B, 3, S, S) in [0, 1] to the same (docs/extending.md).
    """

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

    model: ModelSpec = Field(default=ModelSpec(), json_schema_extra=SAME_BATCHES_OF_PIXELS)
    """The network, where its weights come from, and what of it is trained."""
    image_px: Pixels = 128
    """The side of the network's square input, in pixels; independent of `data.size_px`."""
    augment: AugmentSpec = AugmentSpec()
    """Random changes to training pictures."""
    loss: LossSpec = Field(default=BceLoss(), json_schema_extra=SAME_BATCHES)
    """What training minimises."""
    optimizer: OptimizerSpec = Field(default=Adam(), json_schema_extra=SAME_BATCHES)
    """How weights follow the gradient."""
    schedule: ScheduleSpec = Field(default=Constant(), json_schema_extra=SAME_BATCHES)
    """How the learning rate changes over the steps."""
    epochs: Count = Field(default=15, json_schema_extra=SAME_BATCHES)
    """Passes over the training images. The best epoch by `monitor` is kept, not the last."""
    batch_size: Count = 64
    """Images in a step. Where the GPU's memory is too small, gradients are summed over parts of a batch."""
    cached_views: Count | None = None
    """How many augmented views of each picture the frozen part computes, once; epochs take them in turn.

    Saves most of the time where `model.trainable` is not `all`. With as many views as epochs, training
    sees what it would see without. null: new views in each epoch.
    """
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", json_schema_extra=SAME_BATCHES_OF_PIXELS
    )
    """The precision of the arithmetic. `auto`: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU.

    fp16 needs a GPU.
    """
    monitor: Literal[MetricName, "loss"] = Field(
        default="map_macro", json_schema_extra={**SAME_BATCHES, "introduced": "f1_micro"}
    )
    """The validation metric that chooses the best epoch, and that `patience_epochs` and `plateau` watch.

    Of equal values the one with the lower validation loss is better. Metrics that need decisions use
    threshold 0.5 here; an epoch in which no label reaches it does not count as waiting.
    """
    sampling: SamplingSpec = SamplingSpec()
    """Which images an epoch takes, and how often."""
    ema_epochs: NonNegative = Field(default=0.0, json_schema_extra=SAME_BATCHES)
    """Validates and keeps an exponential moving average of the weights, over about so many epochs. 0: none."""
    clip_grad_norm: NonNegative = Field(default=0.0, json_schema_extra=SAME_BATCHES)
    """Gradients with a larger norm are scaled down to this one. Use it where the loss jumps. 0: none."""
    freeze_backbone_epochs: Annotated[int, Field(ge=0, json_schema_extra=SAME_BATCHES)] = 0
    """Only the head learns in the first epochs, then all that is trainable (LP-FT, Kumar et al. 2022)."""
    patience_epochs: Count | None = Field(default=None, json_schema_extra=SAME_BATCHES)
    """Stops early when `monitor` has not improved for so many epochs. null: never."""
    tta_hflip: bool = Field(default=False, json_schema_extra=SAME_BATCHES)
    """Test-time augmentation: final scores are means over a picture and its mirror image, at twice the time."""
    eval_image_px: Pixels | None = None
    """The side of the pictures for the final scores of validation and test, in pixels. null: `image_px`.

    After training on crops a larger one helps, as objects look smaller in whole pictures (Touvron et al. 2019).
    """
    seed: Seed = 0
    """Draws initial weights, the order of images, augmentation and dropout."""

    @model_validator(mode="after")
    def _sensible(self) -> TrainSpec:
        if self.cached_views is not None and self.model.trainable == "all":
            raise ValueError(
                "cached_views needs model.trainable: head, last_stage or another part; "
                "a network that learns as a whole has no fixed features"
            )
        mixed = self.augment.mixup or self.augment.cutmix or self.augment.random_erasing or self.augment.own
        if self.cached_views is not None and mixed:
            raise ValueError(
                "cached_views keeps features of single pictures: it excludes mixup, cutmix, random_erasing and own; "
                "leave them at their defaults, or leave cached_views out"
            )
        if self.eval_image_px is not None and self.model.has_one_size:
            raise ValueError(f"{self.model.name} has one size of input; leave eval_image_px out")
        return self

    @property
    def own_calls(self) -> tuple[OwnCall, ...]:
        """The functions of the user's own that it names."""
        return own_calls(self.model, self.loss, self.augment.own)
