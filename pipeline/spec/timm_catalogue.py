"""What a spec may call `timm/<name>`, without importing timm.

`tests/timm_catalogue.py` generates `timm_models.tsv` from the installed timm.
"""

from __future__ import annotations

import functools
import pkgutil
from difflib import get_close_matches
from typing import NamedTuple

from pipeline.spec.model_names import IMAGENET, Preprocessing

PREFIX = "timm/"
# what the table calls the normalisations that nearly all have
NORMALISATIONS = {
    "imagenet": IMAGENET[:2],
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class TimmModel(NamedTuple):
    """One set of published weights, or an architecture without any, as timm configures it."""

    name: str
    """`<architecture>.<tag>`, or the architecture alone where timm publishes no weights."""
    image_px: int
    """The side of the pictures it was trained on; of the few that are not square the width."""
    is_fixed: bool
    """Whether it was made for that size alone."""
    preprocessing: Preprocessing
    """Of its pictures."""
    licence: str
    """Of the weights, as timm tags it; empty where unknown."""
    hub: str
    """Where the Hugging Face hub has them, else their address; empty of a network without published weights."""
    params_m: float | None
    """Millions of parameters, with the head of its weights."""
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
    """Every model by its name without `timm/`; of an architecture timm's default weights first."""
    body = pkgutil.get_data("pipeline.spec", "timm_models.tsv")  # also from the zip of frozen code
    assert body is not None
    return {model.name: model for model in map(_parsed, body.decode().splitlines()[1:])}


def find(name: str) -> TimmModel | None:
    """The model of a name with or without `timm/`; of an architecture alone timm's default weights."""
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
    name, px, fixed, interpolation, numbers, licence, hub, params_m, gflops = line.split("\t")
    hub = PREFIX + name if hub == "=" else hub
    return TimmModel(
        name, int(px), fixed == "fixed", _preprocessing(numbers, interpolation or "bicubic"), licence, hub,
        float(params_m) if params_m else None, float(gflops) if gflops else None,
    )  # fmt: skip


def _preprocessing(text: str, interpolation: str) -> Preprocessing:
    if text in NORMALISATIONS:
        return Preprocessing(*NORMALISATIONS[text], interpolation)
    values = [float(value) for value in text.split(",")]
    return Preprocessing(tuple(values[:3]), tuple(values[3:]), interpolation)  # type: ignore[arg-type]  # three each
