"""Where the weights of a network of timm are: on the Hugging Face hub, or at an address of their own. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import SpecError
from pipeline.models.installed_timm import installed_model
from pipeline.spec.timm_catalogue import TimmModel, find, near

_FILE = "model.safetensors"  # in every repository of timm


class Published(NamedTuple):
    """Weights that can be fetched."""

    url: str
    file: str
    """Its name in the folder of weights."""
    page: str = ""
    """Where their licence is accepted; empty where they are not on the hub."""


def published(name: str) -> Published:
    """The weights of `timm/<architecture>.<tag>`; raises SpecError where timm knows none."""
    model = known_model(name)
    if model is None:
        raise SpecError(f"train.model.name: timm has no {name}; {nearest(name)}")
    if not model.hub:
        raise SpecError(
            f"train.model.name: timm publishes no weights of {name}; write train.model.weights: none"
        )
    if "://" in model.hub:
        return Published(model.hub, file_of(model))
    page = f"{_endpoint()}/{model.hub}"
    return Published(f"{page}/resolve/main/{_FILE}", file_of(model), page)


def file_of(model: TimmModel) -> str:
    """The name of its weights in the folder of weights; "" where none are published."""
    if "://" in model.hub:
        return model.hub.rsplit("/", 1)[-1]
    return f"{model.name}.safetensors" if model.hub else ""


def known_model(name: str) -> TimmModel | None:
    """A network of the catalogue, or one that only the installed timm knows."""
    return find(name) or installed_model(name)


def nearest(name: str) -> str:
    """What a name that timm does not know may have meant, or where names are."""
    close = near(name, 1)
    return f"did you mean `{close[0]}`?" if close else "`labelgrid models` counts its names"


def hub_token() -> str:
    """The token of the environment or of `hf auth login`, as huggingface_hub finds it; "" where there is none."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token:
        home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
        file = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
        try:
            token = file.read_text(encoding="utf-8")
        except OSError:
            return ""
    return "".join(token.split())


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
