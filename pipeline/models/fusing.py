"""A network for scoring: batch norms fused into the convolutions before them, in a copy."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_KNOWN = ("torchvision", "timm")
_WITH_ACTIVATION = "BatchNormAct2d"  # of timm: a batch norm, then a dropout of maps, then an activation


def fuse_conv_bn(net: nn.Module) -> nn.Module:
    """A copy of `net` in evaluation mode that computes the same with fewer passes over memory.

    A batch norm that follows a convolution in its parent's order, with as many channels, is that
    convolution's, unless `watching_norms` saw otherwise: so in every network of
    `pipeline/spec/model_names.py` and in families of timm (tests compare them). An activation inside a norm
    of timm stays. A network without such pairs is returned as it is.
    """
    net.eval()
    if not any(_pairs(module) for module in net.modules()):
        return net
    result = copy.deepcopy(net)
    for module in list(result.modules()):
        for conv_name, norm_name in _pairs(module):
            children = dict(module.named_children())
            conv, norm = children[conv_name], children[norm_name]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(module, norm_name, _rest(norm))
    return result.to(memory_format=torch.channels_last)


@contextlib.contextmanager
def watching_norms(net: nn.Module) -> Iterator[None]:
    """While pictures go through `net`: finds norms that are given more than their convolution's output.

    A sum of branches is such. They are never fused, in this network and its copies.
    """
    outputs: dict[nn.Module, object] = {}
    with contextlib.ExitStack() as hooks:
        for module in net.modules():
            children = dict(module.named_children())
            for conv, norm in ((children[first], children[second]) for first, second in _pairs(module)):

                def made(conv: nn.Module, _: object, output: object) -> None:
                    outputs[conv] = output

                def given(norm: Any, inputs: tuple[object, ...], conv: nn.Module = conv) -> None:
                    if inputs[0] is not outputs.get(conv):
                        norm.labelgrid_apart = True

                hooks.enter_context(conv.register_forward_hook(made))
                hooks.enter_context(norm.register_forward_pre_hook(given))
        yield


def _runs_in_order(module: nn.Module) -> bool:
    """Whether the parts follow each other as they are listed: not of a network of the user's own but in a sequence."""
    return (
        type(module).forward is nn.Sequential.forward or type(module).__module__.partition(".")[0] in _KNOWN
    )


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    if not _runs_in_order(module):
        return []
    children = list(module.named_children())
    return [
        (name, after)
        for (name, conv), (after, norm) in itertools.pairwise(children)
        if _is_plain(conv)
        and _is_batch_norm(norm)
        and norm.track_running_stats
        and not hasattr(norm, "labelgrid_apart")
        and conv.out_channels == norm.num_features
    ]


def _is_plain(module: nn.Module) -> bool:
    """A convolution by the weights it has: others compute theirs anew in each pass (weight standardisation)."""
    return isinstance(module, nn.Conv2d) and (
        type(module).forward is nn.Conv2d.forward or type(module).__name__ == "Conv2dSame"
    )


def _is_batch_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """torch's own, or timm's with an activation behind it; what else a subclass does nobody knows."""
    return type(module) is nn.BatchNorm2d or type(module).__name__ == _WITH_ACTIVATION


def _rest(norm: nn.Module) -> nn.Module:
    """What a batch norm does besides normalising."""
    if type(norm).__name__ != _WITH_ACTIVATION:
        return nn.Identity()
    return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
