"""Which names and weights of a network a spec may hold, and what is meant by one that is not known."""

from __future__ import annotations

import functools
from difflib import SequenceMatcher, get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.spec.model_names import CNNS, MODEL_NAMES
from pipeline.spec.own_code import checked_path, is_own
from pipeline.spec.timm_catalogue import PREFIX, TimmModel, catalogue, find, near

PRETRAINED = "pretrained"  # the weights that the tag in a name of timm stands for
CATALOGUE_VERSION = (1, 0, 31)  # of the timm that the catalogue was written from
_FAR = 1.5  # times the size that weights learnt from, or less: objects look otherwise
_SAME = 0.8  # likeness from which another name is taken for a slip of the pen


def known_model(name: Any) -> Any:
    """A validator: the name itself; a name that the catalogue lacks is left to a timm that may be newer than it."""
    if not isinstance(name, str) or name in MODEL_NAMES:
        return name
    if is_own(name):
        return checked_path(name)
    if not name.startswith(PREFIX):
        close = _closest(name)
        hint = (
            f"did you mean `{close}`?" if close else f"known: {', '.join(MODEL_NAMES)}, and timm's: timm/NAME"
        )
        raise ValueError(f"unknown model; {hint}")
    if find(name) is None:
        meant = [close for close in near(name) if SequenceMatcher(None, close, name).ratio() >= _SAME]
        if meant:
            raise ValueError(f"unknown model; did you mean {' or '.join(f'`{close}`' for close in meant)}?")
        if not _may_know_more():
            raise ValueError(
                f"unknown model; the timm installed here, {version('timm')}, has none of this name: "
                "timm.list_models() lists its names"
            )
    return name


def _closest(name: str) -> str | None:
    """The likeliest of torchvision's names; one of timm's only where it is likelier."""
    if find(name) is not None:
        return PREFIX + name
    candidates = [*get_close_matches(name, MODEL_NAMES, n=1), *near(name, 1)]
    likeness = {each: SequenceMatcher(None, each.removeprefix(PREFIX), name).ratio() for each in candidates}
    return max(candidates, key=likeness.__getitem__, default=None)


def _may_know_more() -> bool:
    """Whether timm here is newer than the catalogue, or not here: then who builds the network will tell."""
    try:
        return tuple(int(part) for part in version("timm").split(".")[:3]) > CATALOGUE_VERSION
    except (PackageNotFoundError, ValueError):
        return True


@functools.cache
def of_timm(name: str) -> TimmModel | None:
    """What the catalogue says of a network; None of one of others, or of a newer timm."""
    return find(name) if name.startswith(PREFIX) else None


def size_note(name: str, weights: str, image_px: int) -> str | None:
    """That pictures of `image_px` are much larger or smaller than those the weights learnt from; None else."""
    known = of_timm(name)
    if known is None or weights == "none":
        return None
    if 1 / _FAR < image_px / known.image_px < _FAR:
        return None
    return (
        f"train.image_px: {image_px}: the weights of {name} learnt from pictures of {known.image_px} px; nearer to it "
        "they are worth more"
    )


def with_default_weights(section: Any) -> Any:
    """A validator of the whole section: a tag in the name of a network of timm names its weights."""
    if not isinstance(section, dict) or "weights" in section:
        return section
    name = section.get("name")
    is_tagged = isinstance(name, str) and name.startswith(PREFIX) and "." in name
    return section | {"weights": PRETRAINED} if is_tagged else section


def refuse_weights_of_others(name: str, weights: str, *, is_named: bool) -> None:
    """Raises ValueError where weights are named in a way that this network does not have."""
    if not is_named:
        _refuse_unclear_input(name, weights)
        return
    if is_own(name):
        raise ValueError("a network of your own has no published weights; write weights: none or a file")
    if name in CNNS:
        raise ValueError(f"{name} has no published weights; write weights: none or a file")
    if not name.startswith(PREFIX):
        if weights == PRETRAINED:
            raise ValueError(f"weights: pretrained is for networks of timm; of {name} write IMAGENET1K_V1")
        return
    if weights == PRETRAINED and "." in name:
        return
    tagged = [PREFIX + model.name for model in _published(name)]
    if not tagged:
        raise ValueError(f"timm publishes no weights of {name}; write weights: none or a file")
    where = "the tag in its name" if weights == PRETRAINED else "a tag in its name, and weights: pretrained,"
    raise ValueError(
        f"weights: {weights}: of a network of timm {where} says which; name it {', '.join(tagged)}"
    )


def _refuse_unclear_input(name: str, weights: str) -> None:
    """Published weights of one architecture may have learnt from pictures of different mean: a file is of which?"""
    if weights == "none" or "." in name or not name.startswith(PREFIX):
        return
    by_input = {model.preprocessing[:2]: PREFIX + model.name for model in _published(name)}
    if len(by_input) > 1:
        raise ValueError(
            f"weights of {name} differ in the mean and std of their pictures; name the tag that your file is of, or "
            f"was begun from: {' or '.join(by_input.values())} or another one"
        )


def _published(name: str) -> list[TimmModel]:
    architecture = name.removeprefix(PREFIX).split(".")[0]
    return [
        model for model in catalogue().values() if model.has_weights and model.architecture == architecture
    ]
