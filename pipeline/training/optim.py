"""Optimizers by name, and the learning rate and weight decay of each parameter."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn, optim

from pipeline.errors import TrainingError
from pipeline.models.layers import layers_of
from pipeline.spec import OptimizerSpec

_OPTIMIZERS: dict[str, type[optim.Optimizer]] = {
    "sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop,
    "adadelta": optim.Adadelta,
}  # fmt: skip
# what is settled for each parameter here; the rest of a section are arguments of the class
_PER_PARAMETER = {
    *("name", "weight_decay", "decay_bias_and_norm", "backbone_lr_factor", "layer_decay", "groups"),
}

# one pass over the weights: 1.6 to 3 times the speed on a CPU, where fused SGD is slower than the plain one
_FUSED = ("adam", "adamw")


def build_optimizer(spec: OptimizerSpec, net: nn.Module, head: nn.Module | None = None) -> optim.Optimizer:
    """The optimizer of a network's trainable parameters, each in one group; the first group is of the head.

    A parameter learns at `lr`, times `backbone_lr_factor` and `layer_decay`^(layers between it and the end) unless
    it is the head's, times the `lr_factor` of the last of `groups` that matches its name and has one. Weight decay
    leaves out biases and norms (everything of one dimension) and what a network of timm names (`no_weight_decay`),
    unless the spec says `decay_bias_and_norm` or a group gives one. Raises TrainingError for a group without
    parameters.
    """
    named = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    _refuse_empty_groups(spec, named, net)
    own = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    layers = layers_of(net, head) if spec.layer_decay != 1 else dict.fromkeys(named, 0)
    top, undecayed = max(layers.values()), _undecayed(net)
    groups: dict[tuple[float, float, bool], list[str]] = {}
    for name, parameter in named.items():
        factor = 1.0 if id(parameter) in own else spec.backbone_lr_factor
        factor *= spec.layer_decay ** (top - layers[name])
        spared = (
            parameter.ndim <= 1 or any(fnmatchcase(name, one) for one in undecayed)
        ) and not spec.decay_bias_and_norm
        decay = 0.0 if spared else spec.weight_decay
        matching = [group for group in spec.groups if fnmatchcase(name, group.parameters)]
        factor *= next((g.lr_factor for g in reversed(matching) if g.lr_factor is not None), 1.0)
        decay = next((g.weight_decay for g in reversed(matching) if g.weight_decay is not None), decay)
        groups.setdefault((factor, decay, spared), []).append(name)

    def place(key: tuple[float, float, bool]) -> Any:
        """The head's groups first, then by falling rate: a saved state of an optimizer knows them by their order."""
        factor, decay, spared = key
        return not any(id(named[name]) in own for name in groups[key]), -factor, spared, decay

    settings: dict[str, Any] = spec.model_dump(exclude=_PER_PARAMETER)
    if spec.name in _FUSED:
        settings["fused"] = True
    return _OPTIMIZERS[spec.name](
        [
            {"params": [named[n] for n in groups[key]], "lr": spec.lr * key[0], "weight_decay": key[1]}
            for key in sorted(groups, key=place)
        ],
        **settings,
    )


def _undecayed(net: nn.Module) -> set[str]:
    listed: Any = getattr(net, "no_weight_decay", None)
    return set(listed()) if callable(listed) else set()


def _refuse_empty_groups(spec: OptimizerSpec, trainable: Iterable[str], net: nn.Module) -> None:
    every = [name for name, _ in net.named_parameters()]
    for group in spec.groups:
        pattern = group.parameters
        if any(fnmatchcase(name, pattern) for name in trainable):
            continue
        if any(fnmatchcase(name, pattern) for name in every):
            raise TrainingError(
                f"train.optimizer.groups: {pattern!r} matches frozen parameters alone; remove it, or train them "
                "(train.model.trainable)"
            )
        raise TrainingError(
            f"train.optimizer.groups: {pattern!r} matches no parameter; {_near(pattern, every)}"
        )


def _near(pattern: str, names: Iterable[str]) -> str:
    """Parts of parameters' names like the pattern; else where to begin."""
    parts = [name.split(".") for name in names]
    whole = {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
    close = get_close_matches(
        pattern.strip("*."), sorted(whole | {word for part in parts for word in part}), n=3
    )
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"they begin with {', '.join(dict.fromkeys(part[0] for part in parts))}"
