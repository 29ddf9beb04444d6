"""Files of weights (torch's, safetensors) into a network: everything but the head must be there and fit."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.models.kind import Kind
from pipeline.spec import ModelSpec


def load_weights(
    net: nn.Module, kind: Kind, model: ModelSpec, image_px: int, path: Path, spare: Collection[str] = ()
) -> None:
    """Put the weights of a file into `net`, which was built for `image_px`.

    The head is taken too where it has the same layers and labels. Names of `spare` may be in the file and are left
    out. Raises CheckpointError where the file cannot be read, is of another network, or holds what is not finite.
    """
    state = kind.own_names(net, model, read_state(path), image_px)
    head = kind.head_path(net, model.name) + "."
    own = net.state_dict()
    # a head of other layers starts anew
    state = {
        key: value for key, value in state.items() if key in own or not (key in spare or key.startswith(head))
    }
    wrong = []
    for key, value in own.items():
        if key in state and state[key].shape == value.shape:
            continue
        # a counter that older files lack and no prediction uses
        if key.startswith(head) or (key.endswith("num_batches_tracked") and key not in state):
            state[key] = value  # a head of another number of labels starts anew
        else:
            shape = f"{tuple(state[key].shape)}" if key in state else "missing"
            wrong.append(f"{key} is {shape}, needs {tuple(value.shape)}")
    foreign = [key for key in state if key not in own]
    wrong += [f"{key} is not part of it" for key in foreign]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{path}: not weights for {model.name}: {'; '.join(wrong[:3])}{more}; "
            "correct train.model.name or train.model.weights"
        )
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(f"{path}: {broken[0]} holds values that are not finite; use other weights")
    net.load_state_dict(state)


def load_head(net: nn.Module, kind: Kind, model: ModelSpec, path: Path) -> None:
    """Put the head of a file into `net`, where it has the same layers and labels; else it starts anew."""
    where = kind.head_path(net, model.name)
    head, prefix = net.get_submodule(where), where + "."
    state = {
        key.removeprefix(prefix): each for key, each in read_state(path).items() if key.startswith(prefix)
    }
    own = {key: value.shape for key, value in head.state_dict().items()}
    if {key: value.shape for key, value in state.items()} == own:
        head.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a file: bare, or as `model` or `state_dict` of a checkpoint; no code in it is run."""
    state = _read_safetensors(path) if Path(path).suffix == ".safetensors" else _read_torch(path)
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no weights (a mapping of names to tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as weights: {text}") from error


def _read_safetensors(path: Path) -> object:
    if find_spec("safetensors") is None:
        raise CheckpointError(
            f"{path}: needs the package safetensors: pip install 'labelgrid[timm]', or write a file of torch"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights: {error}") from error
