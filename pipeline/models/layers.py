"""The layers of a network in the order of execution, for learning rates that fall from head to stem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers_of(net: nn.Module, head: nn.Module | None) -> dict[str, int]:
    """The layer of every parameter by its name: 0 is the stem, the highest that of the head.

    A network of timm names its layers itself (`group_matcher`). Of others, a block is a layer, and so is a plain
    layer with a kernel or matrix; a norm belongs to the plain layer before it, or else to the one behind it.
    Parameters of no layer (tokens, positions) count as stem, as in BEiT (Bao et al. 2022).
    """
    matcher: Any = getattr(net, "group_matcher", None)
    if callable(matcher):
        from timm.models import group_parameters

        found: dict[str, int] = group_parameters(net, matcher(coarse=False), reverse=True)
    else:
        found = _by_structure(net, head)
    own = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    top = max(found.values())
    return found | {name: top for name, parameter in net.named_parameters() if id(parameter) in own}


def _by_structure(net: nn.Module, head: nn.Module | None) -> dict[str, int]:
    found = {name: 0 for name, _ in net.named_parameters()}
    layer, was_block, has_kernel = 0, False, False
    for name, unit in _units(net, head):
        parameters = list(unit.named_parameters(prefix=name))
        if not parameters:
            continue
        is_block = unit is not head and next(unit.children(), None) is not None
        kernel = unit is head or any(parameter.ndim > 1 for _, parameter in parameters)
        if was_block or (has_kernel and (is_block or kernel)):
            layer, has_kernel = layer + 1, False
        was_block, has_kernel = is_block, has_kernel or kernel
        found |= {key: layer for key, _ in parameters}
    return found


def _units(module: nn.Module, head: nn.Module | None, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Blocks and plain layers, in the order in which they are registered."""
    for name, child in module.named_children():
        if child is not head and _holds_blocks(child):
            yield from _units(child, head, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it is a chain of layers, or holds one (as the encoder of a vit), and so is no block itself."""
    children = list(module.children())
    if isinstance(module, _CHAINS):
        # a chain of a class of its own, without blocks in it, is one: a convolution with its norm
        return type(module) in _CHAINS or any(next(child.children(), None) is not None for child in children)
    return any(isinstance(child, _CHAINS) and _is_repeated(child) for child in children)


def _is_repeated(chain: nn.Module) -> bool:
    """Whether two blocks of one class follow each other in it."""
    kinds = [type(child) for child in chain.children() if next(child.children(), None) is not None]
    return any(kinds.count(kind) > 1 and not issubclass(kind, _CHAINS) for kind in kinds)
