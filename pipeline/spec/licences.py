"""Under which licence published weights are, and what that means for their use."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.spec.timm_catalogue import PREFIX, find
from pipeline.spec.torchvision_catalogue import torchvision_weights

_FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
_NON_COMMERCIAL = {
    "cc-by-nc-4.0": "forbids commercial use",
    "fair-noncommercial-research-license": "allows research that is not commercial only",
    "apple-amlr": "allows research only",
}


def licence_of(name: str, weights: str) -> str:
    """Of the weights that a network begins with; "" where it is not known, as of a file or of none."""
    if name.startswith(PREFIX):
        model = find(name) if weights == "pretrained" else None
        return "" if model is None or model.licence == "unknown" else model.licence
    found = torchvision_weights().get((name, weights))
    return "" if found is None else found.licence


def limits(licence: str) -> str:
    """What a licence forbids, as a predicate; "" of those that allow all use, and where none is known."""
    if licence in ("", *_FREE):
        return ""
    return _NON_COMMERCIAL.get(licence, "has terms of its own, which may limit use")


def licence_notes(models: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each (name, weights) whose licence may limit the use of the weights."""
    notes = []
    for name, weights in dict.fromkeys(models):
        licence = licence_of(name, weights)
        if limits(licence):
            where = f" ({page})" if (page := hub_page(name)) else ""
            notes.append(f"the licence of the weights of {name}, {licence}, {limits(licence)}{where}")
    return notes


def hub_page(name: str) -> str:
    """Where the weights of a network of timm and their licence are described; "" of all others."""
    model = find(name) if name.startswith(PREFIX) else None
    if model is None or not model.hub or "://" in model.hub:
        return ""
    return f"https://huggingface.co/{model.hub}"
