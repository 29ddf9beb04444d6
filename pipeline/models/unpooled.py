"""Networks of torchvision whose head takes the features before the pooling, one forward a family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.heads import Features
from pipeline.spec.model_names import FAMILIES

# what lies behind the pooling, a norm or a hidden layer, works at every place; linear ones take channels last


def _resnet(net: Any, images: Tensor) -> Any:
    maps = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    return net.fc(net.layer4(net.layer3(net.layer2(net.layer1(maps)))))


def _regnet(net: Any, images: Tensor) -> Any:
    return net.fc(net.trunk_output(net.stem(images)))


def _sequence(net: Any, images: Tensor) -> Any:
    return net.classifier(net.features(images))


def _mobilenet(net: Any, images: Tensor) -> Any:
    return net.classifier(net.features(images).permute(0, 2, 3, 1))


def _densenet(net: Any, images: Tensor) -> Any:
    return net.classifier(functional.relu(net.features(images)))


def _swin(net: Any, images: Tensor) -> Any:
    return net.head(net.norm(net.features(images)))


def _vit(net: Any, images: Tensor) -> Any:
    patches = net._process_input(images)
    token = net.class_token.expand(patches.shape[0], -1, -1)
    return net.heads(net.encoder(torch.cat([token, patches], dim=1)))


# family -> its forward; the axis of its features; tokens before those of patches
_FORWARDS: dict[str, tuple[Callable[[Any, Tensor], Any], int, int]] = {
    "resnet": (_resnet, 1, 0), "resnext": (_resnet, 1, 0), "regnet": (_regnet, 1, 0), "mobilenet": (_mobilenet, 3, 0),
    "efficientnet": (_sequence, 1, 0), "convnext": (_sequence, 1, 0), "densenet": (_densenet, 1, 0),
    "vit": (_vit, 2, 1), "swin": (_swin, 3, 0),
}  # fmt: skip


def take_unpooled(net: Any, name: str, features: int) -> Features:
    """Make the head of a network of torchvision take unpooled features; it had `features` pooled ones.

    The network gets another forward, and keeps its parts with their names and weights.
    """
    family = next(family for family, (_, names) in FAMILIES.items() if name in names)
    forward, axis, prefix = _FORWARDS[family]
    if family == "convnext":
        flatten = next(
            key for key, module in net.classifier.named_children() if isinstance(module, nn.Flatten)
        )
        net.classifier[int(flatten)] = nn.Identity()
    net.__class__ = type(f"Unpooled{type(net).__name__}", (type(net),), {"forward": forward})
    return Features(features, axis, prefix)
