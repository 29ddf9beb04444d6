"""Networks of the user's own: `package.module:function`, imported from the frozen copy of its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.models.fusing import watching_norms
from pipeline.models.heads import ON_MAPS, Features
from pipeline.own.frozen import own_function, telling
from pipeline.own.source import digest_of_zip
from pipeline.spec import ModelSpec, OwnCall
from pipeline.spec.identity import digest
from pipeline.spec.own_code import Options

_KEY = "train.model"
_TRIAL = 2  # pictures

# B batch, K labels


class UsersNetworks:
    """What the spec's function makes. `code` is the frozen copy, which only `build` needs."""

    def __init__(self, code: Path | None = None) -> None:
        self.code = code

    def build(self, model: ModelSpec, num_labels: int, image_px: int) -> nn.Module:
        """Calls `function(num_labels, image_px, **options)` and tries what comes back at its size."""
        function = own_function(self.code, OwnCall(_KEY, model.name, Options(model.options)), given=2)
        with telling(_KEY):
            net = function(num_labels, image_px)
        if not isinstance(net, nn.Module):
            raise TrainingError(
                f"{_KEY}: {model.name} returned {type(net).__name__}; it must return a torch.nn.Module"
            )
        net = net.float()
        made_of = digest([digest_of_zip(self.code) if self.code else "", model.options])
        net.labelgrid_made_of = made_of  # type: ignore[assignment]  # no module: for features that are kept
        net.labelgrid_head = _found_head(net, model, num_labels)  # type: ignore[assignment]  # no module: a path
        _try(net, model, num_labels, image_px)
        return net

    def head_path(self, net: nn.Module, name: str) -> str:
        """The part called `head`, else the only linear layer with an output a label."""
        return str(net.labelgrid_head)

    def last_stage(self, net: nn.Module, name: str) -> str:
        """There is none, as the spec says too."""
        raise TrainingError(
            f"{_KEY}.trainable: the stages of {name} are not known; name a part, e.g. blocks.3"
        )

    def own_names(
        self, net: nn.Module, model: ModelSpec, state: dict[str, Tensor], image_px: int
    ) -> dict[str, Tensor]:
        """As they are."""
        return state

    def take_unpooled(self, net: nn.Module, model: ModelSpec, image_px: int) -> Features:
        """What its own head is given, where that pools by itself: maps (B, D, rows, columns) or tokens (B, N, D)."""
        path = self.head_path(net, model.name)
        _, calls = _passed(net, image_px)
        inputs, output = calls[0] if len(calls) == 1 else ((), None)
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else () for one in inputs]
        shape = shapes[0] if len(shapes) == 1 else ()
        if isinstance(output, Tensor) and output.ndim == 2:  # it pools
            if len(shape) == 3:
                return Features(shape[2], axis=2)
            if (
                len(shape) == 4 and shape[2] == shape[3]
            ):  # of square pictures; another order has features last
                return Features(shape[1], axis=1)
        found = (
            f"{shapes[0]} of {_TRIAL} pictures" if shape else f"{len(inputs)} values in {len(calls)} calls"
        )
        raise TrainingError(
            f"{_KEY}.head: {model.head.name} takes the place of {path!r}, so that must be given maps (B, D, rows, "
            f"columns) or tokens (B, N, D) and pool them itself; that of {model.name} is given {found}; write it e.g. "
            "as nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(D, num_labels)), or leave head out"
        )


def _found_head(net: nn.Module, model: ModelSpec, num_labels: int) -> str:
    """Where the head lies; raises TrainingError where that is not clear, or the spec asks for what it cannot be."""
    if isinstance(getattr(net, "head", None), nn.Module):
        path = "head"
    else:
        linear = [
            name
            for name, part in net.named_modules()
            if isinstance(part, nn.Linear) and part.out_features == num_labels
        ]
        if len(linear) != 1:
            found = (
                f"has {len(linear)} linear layers with {num_labels} outputs ({', '.join(linear) or 'none'})"
            )
            raise TrainingError(
                f"{_KEY}: {model.name}: the network {found}; call the one that makes logits of features `head`"
            )
        (path,) = linear
    head = net.get_submodule(path)
    last = head[-1] if isinstance(head, nn.Sequential) else head
    plain = isinstance(head, nn.Linear)
    if model.head.name in ON_MAPS:  # takes its place as a whole
        return path
    if (model.head_hidden or model.head_dropout) and not plain:
        raise TrainingError(
            f"{_KEY}: head_hidden and head_dropout replace a linear layer, and {path} is {type(head).__name__}; "
            "build what you want of it yourself"
        )
    bias = getattr(last, "bias", None)
    if model.head_bias == "prior" and (not isinstance(bias, Tensor) or bias.shape != (num_labels,)):
        raise TrainingError(
            f"{_KEY}.head_bias: prior needs a last layer with a bias a label in {path}; write default"
        )
    return path


def _try(net: nn.Module, model: ModelSpec, num_labels: int, image_px: int) -> None:
    """Whether one batch goes through the network to logits, and as the spec needs it."""
    logits, calls = _passed(net, image_px)
    path = str(net.labelgrid_head)
    wanted = (_TRIAL, num_labels)
    if not isinstance(logits, Tensor) or logits.shape != wanted or not logits.is_floating_point():
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TrainingError(
            f"{_KEY}: {model.name}: the network makes {found} of {_TRIAL} pictures; it must make logits {wanted}"
        )
    if model.trainable == "head" and not (len(calls) == 1 and torch.equal(calls[0][1], logits)):
        raise TrainingError(
            f"{_KEY}.trainable: head: the network's logits are not what its head ({path}) returns, so "
            "that what comes before cannot be kept; let forward end with the head, or write all"
        )


def _passed(net: nn.Module, image_px: int) -> tuple[Any, list[tuple[tuple[Any, ...], Any]]]:
    """What a network makes of a batch, and what its head was given and returned, call by call.

    It draws nothing of the seed and leaves no trace.
    """
    calls: list[tuple[tuple[Any, ...], Any]] = []
    head = net.get_submodule(str(net.labelgrid_head))
    keeps = head.register_forward_hook(lambda *args: calls.append((args[1], args[2])))
    was_training = net.training
    with keeps, watching_norms(net), torch.inference_mode(), torch.random.fork_rng(devices=[]), telling(_KEY):
        logits = net.eval()(torch.zeros(_TRIAL, 3, image_px, image_px))
    net.train(was_training)
    return logits, calls
