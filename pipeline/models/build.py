"""Networks built by name, their weights loaded, divided into what is frozen and what learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.errors import TrainingError
from pipeline.models.cutting import cut_at
from pipeline.models.heads import ON_MAPS
from pipeline.models.kind import Kind, replace_module
from pipeline.models.own_networks import OwnNetworks
from pipeline.models.timm_networks import TimmNetworks
from pipeline.models.torchvision_networks import TorchvisionNetworks
from pipeline.models.users_networks import UsersNetworks
from pipeline.models.weight_files import load_head, load_weights
from pipeline.own.frozen import telling
from pipeline.spec import ModelSpec, is_own
from pipeline.spec.model_names import CNNS
from pipeline.spec.timm_catalogue import PREFIX


def kind_of(name: str, code: Path | None = None) -> Kind:
    """What builds the networks of this name, and knows their parts; of a user's own from the frozen copy `code`."""
    if is_own(name):
        return UsersNetworks(code)
    if name.startswith(PREFIX):
        return TimmNetworks()
    return OwnNetworks() if name in CNNS else TorchvisionNetworks()


def build_model(
    model: ModelSpec,
    num_labels: int,
    image_px: int,
    weights_file: Path | None = None,
    code: Path | None = None,
) -> nn.Module:
    """A network from (B, 3, image_px, image_px) to logits (B, num_labels), drawn from torch's global seed.

    With `weights_file` everything but the head starts from that file (the head too, where its shape
    fits). What comes before `trainable` is frozen. Raises CheckpointError for weights of another network,
    TrainingError where the network cannot work at `image_px` or has no part of that name. `code` is the
    frozen copy of the user's own.
    """
    kind = kind_of(model.name, code)
    net = kind.build(model, num_labels, image_px)
    if model.head.name not in ON_MAPS and (model.head_hidden or model.head_dropout):
        plain = head_of(net, model.name)
        replace_module(net, plain, _head(model, plain, num_labels))
    whole, features = set(net.state_dict()), None
    if model.head.name in ON_MAPS:
        features = kind.take_unpooled(net, model, image_px)
    if weights_file is not None:
        # a pooling with weights of its own is gone, and a file may have it or not
        load_weights(net, kind, model, image_px, weights_file, spare=whole - set(net.state_dict()))
    if features is not None:
        replace_module(net, head_of(net, model.name), ON_MAPS[model.head.name](model, features, num_labels))
        if weights_file is not None:
            load_head(net, kind, model, weights_file)
    if model.trainable != "all":
        net.requires_grad_(False)
        with telling("train.model.trainable"):  # a user's forward, as torch.fx runs it
            trainable_part(net, model).requires_grad_(True)
    if model.trainable not in ("all", "head"):
        _try_cut(net, model, image_px)
    return net


def _try_cut(net: nn.Module, model: ModelSpec, image_px: int) -> None:
    """Whether both parts of a network make of pictures what the whole makes, whatever its code does between them."""
    pictures = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(0))
    in_training, as_scored = (trainable_part(net.train(mode), model) for mode in (True, False))
    if in_training.code != as_scored.code:  # a part has the mode of its modules; the network's own is frozen
        raise TrainingError(
            f"train.model.trainable: {model.name} does something else in training than in scoring outside of its "
            f"modules, which would be lost behind {_part(net, model)!r}; make a module of it (nn.Dropout, not "
            "functional.dropout), or write all or head"
        )
    with torch.inference_mode():
        try:
            features = frozen_part(net, model)(pictures)
            found = trainable_part(net, model)(features)
            is_same = torch.is_tensor(features) and torch.allclose(found, net(pictures), atol=1e-4)
            is_same = is_same and len(features) == len(pictures)
        except (RuntimeError, TypeError, AttributeError, ValueError, AssertionError):
            is_same = False  # features of several tensors, or of other sizes
    if not is_same:
        raise TrainingError(
            f"train.model.trainable: {model.name} cannot be cut at {_part(net, model)!r}: both parts do not make what "
            "the whole makes; write all or head, or name another part"
        )


def trainable_part(net: nn.Module, model: ModelSpec) -> nn.Module:
    """What `trainable` names and all that follows, sharing the parameters of `net`: features to logits."""
    if model.trainable == "all":
        return net
    if model.trainable == "head":
        return head_of(net, model.name)
    return cut_at(net, _part(net, model))[1]


def frozen_part(net: nn.Module, model: ModelSpec) -> nn.Module:
    """What comes before `trainable_part`: pictures to features. Of a head it is `net`, changed."""
    if model.trainable != "head":
        return cut_at(net, _part(net, model))[0]
    replace_module(net, head_of(net, model.name), nn.Identity())
    return net


def _part(net: nn.Module, model: ModelSpec) -> str:
    is_named = model.trainable != "last_stage"
    return model.trainable if is_named else kind_of(model.name).last_stage(net, model.name)


def set_training_mode(net: nn.Module, learning: nn.Module) -> None:
    """Dropout and batch statistics on in the part that learns; the rest is frozen and stays as it predicts."""
    net.eval().requires_grad_(False)
    learning.train().requires_grad_(True)


def refuse_other_size(net: nn.Module, name: str, image_px: int) -> None:
    """Raises TrainingError where a network that was built for another size takes no pictures of this one."""
    try:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 3, image_px, image_px))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise TrainingError(
            f"train.eval_image_px: {name} takes pictures of train.image_px alone ({str(error).splitlines()[0]}); "
            "leave eval_image_px out"
        ) from error


def init_bias_to_prior(net: nn.Module, name: str, share_K: npt.NDArray[np.float64]) -> None:
    """The head's bias at the log-odds of each label's share of the images, of (0, 1) at least a hair inside.

    Raises TrainingError where the head has no bias.
    """
    share = torch.from_numpy(share_K).float().clamp(1e-4, 1 - 1e-4)
    head = head_of(net, name)
    bias: Any = head[-1].bias if isinstance(head, nn.Sequential) else head.bias
    if bias is None:
        raise TrainingError(f"train.model.head_bias: prior: the head of {name} has no bias; write default")
    with torch.no_grad():
        bias.copy_(torch.logit(share))


def head_of(net: nn.Module, name: str) -> nn.Module:
    """What makes logits of the features: the classification layer, or several."""
    return net.get_submodule(kind_of(name).head_path(net, name))


def _head(model: ModelSpec, plain: Any, num_labels: int) -> nn.Sequential:
    """Layers in the place of a `plain` one, of its kind: linear, or a convolution of 1 x 1."""

    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 1) if isinstance(plain, nn.Conv2d) else nn.Linear(inputs, outputs)

    features = plain.in_channels if isinstance(plain, nn.Conv2d) else plain.in_features
    if model.head_hidden is None:
        return nn.Sequential(nn.Dropout(model.head_dropout), layer(features, num_labels))
    return nn.Sequential(
        nn.Dropout(model.head_dropout), layer(features, model.head_hidden), nn.ReLU(),
        nn.Dropout(model.head_dropout), layer(model.head_hidden, num_labels),
    )  # fmt: skip
