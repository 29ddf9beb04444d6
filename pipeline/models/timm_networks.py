"""Networks of timm (`model.name: timm/...`), asked through what timm offers, never by the names of their parts."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.models.fusing import watching_norms
from pipeline.models.heads import Features, without_maps
from pipeline.spec import ModelSpec
from pipeline.spec.timm_catalogue import PREFIX, near

# what timm's constructors and the filters of its weights raise where something does not fit
_MISFITS = (
    RuntimeError,
    ValueError,
    AssertionError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


class TimmNetworks:
    """Every architecture of timm that makes one row of logits of a picture by one last layer."""

    def build(self, model: ModelSpec, num_labels: int, image_px: int) -> nn.Module:
        """As timm builds it for its size; tried there."""
        cfg = config_of(model.name)
        if model.weights != "none" and (tuple(cfg.mean), tuple(cfg.std)) != model.preprocessing[:2]:
            raise TrainingError(
                f"train.model.name: {model.name}: its pictures have mean {cfg.mean} and std {cfg.std} in this timm, "
                f"Labelgrid knows {model.preprocessing[:2]}; take a newer Labelgrid, or an older timm"
            )
        try:
            net = _created(model.name, num_labels, image_px)
            _refuse_cut_off_pixels(net, image_px)
            with torch.inference_mode(), watching_norms(net):
                shape = tuple(net.eval()(torch.zeros(1, 3, image_px, image_px)).shape)
            if shape != (1, num_labels):
                raise ValueError(f"it makes {shape} of a picture, not a row of {num_labels} logits")
        except _MISFITS as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TrainingError(
                f"{model.name} does not work at train.image_px {image_px}: {text}; use {cfg.input_size[-1]}, which it "
                "was made for, or another network"
            ) from error
        _find_head(net, model.name, num_labels)
        return net

    def head_path(self, net: nn.Module, name: str) -> str:
        """Found when it was built."""
        return str(net.labelgrid_head)

    def last_stage(self, net: nn.Module, name: str) -> str:
        """What follows the last features of a higher resolution; of equal layers the last quarter."""
        stages: list[dict[str, Any]] = list(getattr(net, "feature_info", []))
        known = dict(net.named_modules())
        levels = [stage["reduction"] for stage in stages if stage["module"] in known]
        if len(levels) != len(stages) or not stages:
            raise TrainingError(
                f"train.model.trainable: timm does not tell the stages of {name}; write head, all or the name of a part"
            )
        coarsest = max(levels)
        before = [stage["module"] for stage in stages if stage["reduction"] < coarsest]
        if not before:
            return str(stages[len(stages) - max(len(stages) // 4, 1)]["module"])
        return _next_part(net, before[-1])

    def own_names(
        self, net: nn.Module, model: ModelSpec, state: dict[str, Tensor], image_px: int
    ) -> dict[str, Tensor]:
        """By the filter of the architecture, which also brings positions to the size."""
        head, own = self.head_path(net, model.name), net.state_dict()
        backbone = {key: value for key, value in own.items() if not key.startswith(head + ".")}
        if all(key in state and state[key].shape == value.shape for key, value in backbone.items()):
            return state
        inside = {key: value for key, value in state.items() if key.startswith(head + ".")}
        rest = {key: value for key, value in state.items() if key not in inside}
        # without a head, or with the one it was published with, under whatever name
        for classes in (0, int(config_of(model.name).num_classes)):
            overlay = {"state_dict": dict(rest), "num_classes": classes}
            with contextlib.suppress(*_MISFITS):
                options = {"pretrained": True, "pretrained_cfg_overlay": overlay}
                return _created(model.name, classes, image_px, **options).state_dict() | inside
        return state  # whoever compares it with the network says what is wrong

    def take_unpooled(self, net: nn.Module, model: ModelSpec, image_px: int) -> Features:
        """As timm takes the pooling off; tried, as not all networks can do without, or have places to tell."""
        timms: Any = net
        plain: Any = net.get_submodule(path := self.head_path(net, model.name))
        pooled = plain.in_channels if isinstance(plain, nn.Conv2d) else plain.in_features
        try:
            timms.reset_classifier(0, "")
            assert isinstance(net.get_submodule(path), nn.Identity)
            with torch.inference_mode():
                shape = tuple(net.eval()(torch.zeros(1, 3, image_px, image_px)).shape)
            found = _features(shape, getattr(net, "num_prefix_tokens", 0), getattr(net, "output_fmt", "NCHW"))
            assert pooled in (found.number, 2 * found.number)  # some pool by mean and maximum, side by side
            return found
        except _MISFITS as error:
            raise without_maps(model.name, model.head.name) from error


def _features(shape: tuple[int, ...], prefix: int, layout: str) -> Features:
    """Of unpooled features; raises ValueError where they are none of places of a picture."""
    if len(shape) == 4:
        axis = 3 if layout == "NHWC" else 1
        return Features(shape[axis], axis)
    if len(shape) != 3 or math.isqrt(shape[1] - prefix) ** 2 != shape[1] - prefix:
        raise ValueError(f"{shape} are no features of places")
    return Features(shape[2], axis=2, prefix=prefix)


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise TrainingError(f"{name} needs the package timm: pip install 'labelgrid[timm]'") from error
    return timm


def config_of(name: str) -> Any:
    """What timm says about a network; raises TrainingError where it knows none of that name."""
    timm, bare = _timm(name), name.removeprefix(PREFIX)
    architecture, _, tag = bare.partition(".")
    tags = [str(known).partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if not timm.is_model(architecture) or (tag and tag not in tags):
        close = near(name, 1)
        hint = f"did you mean {close[0]}?" if close else "a newer timm may"
        raise TrainingError(f"train.model.name: timm {timm.__version__} has no network {bare}; {hint}")
    return timm.get_pretrained_cfg(bare)


def _created(name: str, classes: int, image_px: int, **options: Any) -> nn.Module:
    timm, bare = _timm(name), name.removeprefix(PREFIX)
    if config_of(name).fixed_input_size:  # made for a size, and asked for this one
        options["img_size"] = image_px
    net: nn.Module = timm.create_model(bare, num_classes=classes, **options)
    if getattr(net, "dynamic_img_size", False):  # what takes any size is made for one: so it can be cut
        options |= {"img_size": image_px, "dynamic_img_size": False}
        net = timm.create_model(bare, num_classes=classes, **options)
    return net


def _refuse_cut_off_pixels(net: nn.Module, image_px: int) -> None:
    """A patch that does not fit into the picture would be dropped without a word."""
    embed: Any = getattr(net, "patch_embed", None)
    patch: Any = getattr(embed, "patch_size", 1)
    cut: Any = getattr(embed, "proj", None)
    if (
        isinstance(cut, nn.Conv2d) and cut.stride < cut.kernel_size
    ):  # they overlap, as in PVT v2: any size does
        return
    for side in patch if isinstance(patch, tuple | list) else (patch,):
        if isinstance(side, int) and image_px % side:
            raise ValueError(f"its patches are {side} px, of which {image_px} is no multiple")


def _find_head(net: Any, name: str, num_labels: int) -> None:
    """Remember the one layer that makes the logits, wherever a classifier of several layers has it."""
    found = net.get_classifier() if hasattr(net, "get_classifier") else ()
    parts = found if isinstance(found, tuple | list) else (found,)
    inside = {id(module) for part in parts for module in part.modules()}
    paths = [
        path
        for path, module in net.named_modules()
        if id(module) in inside and _outputs(module) == num_labels
    ]
    if len(paths) != 1:
        raise TrainingError(
            f"train.model.name: {name} has {len(paths) or 'no'} layers that make logits, and a head is one; "
            "use another network"
        )
    net.labelgrid_head = paths[0]


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _next_part(net: nn.Module, path: str) -> str:
    """The part after `path` in the order of its parent's parts, or of that one's."""
    while path:
        parent, _, name = path.rpartition(".")
        siblings = [key for key, _ in net.get_submodule(parent).named_children()]
        after = siblings[siblings.index(name) + 1 :]
        if after:
            return f"{parent}.{after[0]}".lstrip(".")
        path = parent
    raise AssertionError("the coarsest features come from a part")
