"""A network for scoring: batch norms fused into the convolutions before them, in a copy."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_conv_bn(net: nn.Module) -> nn.Module:
    """A copy of `net` in evaluation mode that computes the same with fewer passes over memory.

    A batch norm that follows a convolution in its parent's order, with as many channels, is that
    convolution's: so in every network of `pipeline/spec/model_names.py` (a test compares them). A network
    without such pairs is returned as it is.
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
            setattr(module, norm_name, nn.Identity())
    return result.to(memory_format=torch.channels_last)


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    children = list(module.named_children())
    return [
        (name, after)
        for (name, conv), (after, norm) in itertools.pairwise(children)
        if isinstance(conv, nn.Conv2d)
        and isinstance(norm, nn.BatchNorm2d)
        and norm.track_running_stats
        and conv.out_channels == norm.num_features
    ]
