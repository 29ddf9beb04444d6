"""Optimizers by name."""

from __future__ import annotations

from typing import Any

from torch import nn, optim

from pipeline.spec import OptimizerSpec

_OPTIMIZERS: dict[str, type[optim.Optimizer]] = {
    "sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop,
    "adadelta": optim.Adadelta,
}  # fmt: skip


# one pass over the weights: 1.6 to 3 times the speed on a CPU, where fused SGD is slower than the plain one
_FUSED = ("adam", "adamw")


def _spared_by_name(net: Any) -> frozenset[str]:
    """What a network of timm names itself as nothing to decay: positions and tokens."""
    return frozenset(net.no_weight_decay() if hasattr(net, "no_weight_decay") else ())


def build_optimizer(spec: OptimizerSpec, net: nn.Module, head: nn.Module | None = None) -> optim.Optimizer:
    """The optimizer of a network's trainable parameters.

    Weight decay leaves out biases and norms (everything of one dimension), and what a network of timm names itself,
    unless the spec says `decay_bias_and_norm`. All that is not part of `head` learns at `backbone_lr_factor` times
    the rate.
    """
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    own = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    parts = [(trainable, spec.lr)]
    if spec.backbone_lr_factor != 1:
        parts = [
            ([p for p in trainable if id(p) in own], spec.lr),
            ([p for p in trainable if id(p) not in own], spec.lr * spec.backbone_lr_factor),
        ]
    groups: list[dict[str, Any]] = []
    named = _spared_by_name(net)
    kept = {id(p) for name, p in net.named_parameters() if p.ndim <= 1 or name in named}
    for members, lr in parts:
        decayed = [p for p in members if id(p) not in kept or spec.decay_bias_and_norm]
        spared = [p for p in members if id(p) in kept and not spec.decay_bias_and_norm]
        groups.append({"params": decayed, "weight_decay": spec.weight_decay, "lr": lr})
        groups.append({"params": spared, "weight_decay": 0.0, "lr": lr})
    settings = spec.model_dump(exclude={"name", "backbone_lr_factor", "weight_decay", "decay_bias_and_norm"})
    if spec.name in _FUSED:
        settings["fused"] = True
    return _OPTIMIZERS[spec.name]([group for group in groups if group["params"]], **settings)
