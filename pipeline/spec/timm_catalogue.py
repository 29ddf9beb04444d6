"""What a spec may call `timm/<name>`, without importing timm.

`tests/timm_catalogue.py` generates `timm_models.tsv` from the installed timm.
"""

from __future__ import annotations

import functools
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from pipeline.spec.model_names import Normalisation

PREFIX = "timm/"


class TimmModel(NamedTuple):
    """One set of published weights, or an architecture without any, as timm configures it."""

    name: str
    """`<architecture>.<tag>`, or the architecture alone where timm publishes no weights."""
    image_px: int
    """The side of the pictures it was trained on."""
    is_fixed: bool
    """Whether it was made for that size alone."""
    interpolation: str
    """How its pictures were resized: `bicubic` or `bilinear`."""
    normalisation: Normalisation
    licence: str
    """Of the weights, as timm tags it; empty where unknown."""
    hub: str
    """Where the Hugging Face hub has them; empty of a network without published weights."""
    params_m: float | None
    """Millions of parameters."""
    gflops: float | None
    """Billions of multiplications with an addition for one picture of `image_px`."""

    @property
    def architecture(self) -> str:
        """What builds it."""
        return self.name.split(".")[0]

    @property
    def has_weights(self) -> bool:
        """Whether its name stands for published weights."""
        return "." in self.name


@functools.cache
def catalogue() -> dict[str, TimmModel]:
    """Every model by its name without `timm/`, in the order of names."""
    lines = Path(__file__).with_name("timm_models.tsv").read_text().splitlines()[1:]
    return {model.name: model for model in map(_parsed, lines)}


def find(name: str) -> TimmModel | None:
    """The model of a name with or without `timm/`; of an architecture alone the first of its weights."""
    name = name.removeprefix(PREFIX)
    models = catalogue()
    if name in models:
        return models[name]
    return next((model for model in models.values() if model.architecture == name), None)


def near(name: str, count: int = 3) -> list[str]:
    """Names like this one, the likeliest first, each with `timm/`."""
    name = name.removeprefix(PREFIX)
    known = [*catalogue(), *{model.architecture for model in catalogue().values()}]
    return [PREFIX + close for close in get_close_matches(name, known, n=count)]


def _parsed(line: str) -> TimmModel:
    name, px, fixed, interpolation, mean, std, licence, hub, params_m, gflops = line.split("\t")
    hub = PREFIX + name if hub == "=" else hub
    channels = [tuple(map(float, part.split(","))) for part in (mean, std)]
    return TimmModel(
        name, int(px), fixed == "fixed", interpolation, Normalisation(*channels), licence, hub,  # type: ignore[arg-type]  # three each
        float(params_m) if params_m else None, float(gflops) if gflops else None,
    )  # fmt: skip
