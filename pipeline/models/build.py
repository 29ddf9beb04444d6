"""Networks by name: the two small CNNs, and torchvision's families with their head replaced."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, TrainingError
from pipeline.models.cutting import cut_at
from pipeline.spec import ModelSpec
from pipeline.spec.model_names import HEAD_OF, LAST_STAGE_OF

_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def build_model(
    model: ModelSpec, num_labels: int, image_px: int, weights_file: Path | None = None
) -> nn.Module:
    """A network from (B, 3, image_px, image_px) to logits (B, num_labels), drawn from torch's global seed.

    With `weights_file` everything but the head starts from that file (the head too, where its shape
    fits). What comes before `trainable` is frozen. Raises CheckpointError for weights of another network,
    TrainingError where the network cannot work at `image_px` or has no part of that name.
    """
    if model.name in HEAD_OF:
        net = _torchvision(model.name, num_labels, image_px)
    else:
        net = OWN_NETWORKS[model.name](num_labels, image_px)
    if model.head_hidden or model.head_dropout:
        plain: Any = head_of(net, model.name)
        _replace(net, plain, _head(model, plain.in_features, num_labels))
    if weights_file is not None:
        _load(net, model.name, image_px, weights_file)
    if model.trainable != "all":
        net.requires_grad_(False)
        trainable_part(net, model).requires_grad_(True)
    return net


def trainable_part(net: nn.Module, model: ModelSpec) -> nn.Module:
    """What `trainable` names and all that follows, sharing the parameters of `net`: features to logits."""
    if model.trainable == "all":
        return net
    if model.trainable == "head":
        return head_of(net, model.name)
    return cut_at(net, _part(model))[1]


def frozen_part(net: nn.Module, model: ModelSpec) -> nn.Module:
    """What comes before `trainable_part`: pictures to features. Of a head it is `net`, changed."""
    if model.trainable != "head":
        return cut_at(net, _part(model))[0]
    _replace(net, head_of(net, model.name), nn.Identity())
    return net


def _part(model: ModelSpec) -> str:
    return LAST_STAGE_OF[model.name] if model.trainable == "last_stage" else model.trainable


def set_training_mode(net: nn.Module, learning: nn.Module) -> None:
    """Dropout and batch statistics on in the part that learns; the rest is frozen and stays as it predicts."""
    net.eval().requires_grad_(False)
    learning.train().requires_grad_(True)


def init_bias_to_prior(net: nn.Module, name: str, share_K: npt.NDArray[np.float64]) -> None:
    """The head's bias at the log-odds of each label's share of the images, of (0, 1) at least a hair inside."""
    share = torch.from_numpy(share_K).float().clamp(1e-4, 1 - 1e-4)
    head = head_of(net, name)
    bias: Any = head[-1].bias if isinstance(head, nn.Sequential) else head.bias
    with torch.no_grad():
        bias.copy_(torch.logit(share))


def head_of(net: nn.Module, name: str) -> nn.Module:
    """What makes logits of the features: the classification layer, or several."""
    module: Any = net
    for part in HEAD_OF.get(name, "-1").split("."):
        module = module[int(part)] if part.lstrip("-").isdigit() else getattr(module, part)
    assert isinstance(module, nn.Module)
    return module


def _head(model: ModelSpec, features: int, num_labels: int) -> nn.Sequential:
    if model.head_hidden is None:
        return nn.Sequential(nn.Dropout(model.head_dropout), nn.Linear(features, num_labels))
    return nn.Sequential(
        nn.Dropout(model.head_dropout), nn.Linear(features, model.head_hidden), nn.ReLU(),
        nn.Dropout(model.head_dropout), nn.Linear(model.head_hidden, num_labels),
    )  # fmt: skip


def _cnn2(num_labels: int, image_px: int) -> nn.Module:
    """The original work's smaller network: 3x3 convolutions with padding 1, one pooling, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (image_px // 2) ** 2, num_labels),
    )  # fmt: skip


def _cnn3(num_labels: int, image_px: int) -> nn.Module:
    """The original work's larger network, with a third convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (image_px // 2) ** 2, num_labels),
    )  # fmt: skip


OWN_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"cnn2": _cnn2, "cnn3": _cnn3}


def _torchvision(name: str, num_labels: int, image_px: int) -> nn.Module:
    from torchvision.models import get_model

    options = {"image_size": image_px} if name.startswith("vit_") else {}
    try:
        net: nn.Module = get_model(name, weights=None, **options)
        head = head_of(net, name)
        assert isinstance(head, nn.Linear)
        _replace(net, head, nn.Linear(head.in_features, num_labels))
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 3, image_px, image_px))
    except (RuntimeError, ValueError, AssertionError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "use another train.image_px (224 suits all, a vit needs a multiple of its patch)"
        raise TrainingError(f"{name} does not work at train.image_px {image_px}: {text}; {remedy}") from error
    return net


def _replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in net.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


def _load(net: nn.Module, name: str, image_px: int, path: Path) -> None:
    state = _read_state(path)
    if name.startswith("densenet"):
        # published densenet files have dots that no module's name may have (torchvision renames them too)
        state = {_DENSE_LAYER.sub(r"\1\2", key): value for key, value in state.items()}
    if name.startswith("vit_"):
        state = _resized_positions(net, state, image_px)
    head = head_of(net, name)
    head_name = next(key for key, module in net.named_modules() if module is head)
    own = net.state_dict()
    # a head of other layers starts anew
    state = {key: value for key, value in state.items() if key in own or not key.startswith(head_name + ".")}
    wrong = []
    for key, value in own.items():
        is_head = key.startswith(head_name + ".")
        if key in state and state[key].shape == value.shape:
            continue
        # a counter that older files lack and no prediction uses
        if is_head or (key.endswith("num_batches_tracked") and key not in state):
            state[key] = value  # a head of another number of labels starts anew
        else:
            shape = f"{tuple(state[key].shape)}" if key in state else "missing"
            wrong.append(f"{key} is {shape}, needs {tuple(value.shape)}")
    foreign = [key for key in state if key not in own]
    wrong += [f"{key} is not part of it" for key in foreign]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{path}: not weights for {name}: {'; '.join(wrong[:3])}{more}; "
            "correct train.model.name or train.model.weights"
        )
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(f"{path}: {broken[0]} holds values that are not finite; use other weights")
    net.load_state_dict(state)


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a file: bare, or as `model` or `state_dict` of a checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as weights: {text}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no weights (a mapping of names to tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _resized_positions(net: nn.Module, state: dict[str, Tensor], image_px: int) -> dict[str, Tensor]:
    from torchvision.models.vision_transformer import interpolate_embeddings

    if "encoder.pos_embedding" not in state:
        return state
    patch_px: Any = net.patch_size
    resized: dict[str, Tensor] = interpolate_embeddings(image_px, patch_px, dict(state))
    return resized
