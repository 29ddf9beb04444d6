"""Networks of the user's own: `package.module:function`, imported from the frozen copy of its code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.models.fusing import watching_norms
from pipeline.models.heads import Features, without_maps
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
        """Its maps are not known: a head of the user's own stands in the network itself."""
        raise without_maps(model.name, model.head.name)


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
    """One batch through the network, which draws nothing of the seed and leaves no trace."""
    heads: list[Tensor] = []
    path = str(net.labelgrid_head)
    keeps = net.get_submodule(path).register_forward_hook(lambda *args: heads.append(args[2]))
    was_training = net.training
    with keeps, watching_norms(net), torch.inference_mode(), torch.random.fork_rng(devices=[]), telling(_KEY):
        logits = net.eval()(torch.zeros(_TRIAL, 3, image_px, image_px))
    net.train(was_training)
    wanted = (_TRIAL, num_labels)
    if not isinstance(logits, Tensor) or logits.shape != wanted or not logits.is_floating_point():
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TrainingError(
            f"{_KEY}: {model.name}: the network makes {found} of {_TRIAL} pictures; it must make logits {wanted}"
        )
    if model.trainable == "head" and not (len(heads) == 1 and torch.equal(heads[0], logits)):
        raise TrainingError(
            f"{_KEY}.trainable: head: the network's logits are not what its head ({path}) returns, so "
            "that what comes before cannot be kept; let forward end with the head, or write all"
        )
