"""What cells differ in, and what they are called by it. Torch-free.

One table orders settings by how much they matter to a reader and gives their short forms: for the names of
cells, the columns of tables and the axes of figures.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from pipeline.spec import TrainSpec
from pipeline.spec.fields import held

Settings = Mapping[str, Any]  # dotted key -> value, of a whole resolved spec

SEED = "train.seed"
SPLIT = "data.split"
ALWAYS = "train.optimizer.lr"  # worth a column even where it does not vary by itself
_LONGEST = 100  # characters of a name; a file name may have 255, and checkpoints add none to it
_TAGS = ("name", "method", "format")  # their values speak for themselves

_ORDER = (  # (key or section, short form); what is not listed comes before the split and keeps its last part
    ("train.model.name", ""), ("train.model.weights", ""), ("train.model.trainable", ""),
    ("train.model.head.name", ""), ("train.model.head_hidden", "hidden"), ("train.model.head_dropout", "dropout"),
    ("train.model", None),
    ("train.optimizer.name", ""), ("train.optimizer.lr", "lr"), ("train.optimizer.weight_decay", "wd"),
    ("train.optimizer.backbone_lr_factor", "backbone"), ("train.optimizer", None),
    ("train.loss.name", ""), ("train.loss", None), ("train.schedule.name", ""), ("train.schedule", None),
    ("train.epochs", "epochs"), ("train.batch_size", "bs"), ("train.image_px", "px"), ("train.augment", None),
    ("train.sampling", None), ("train", None), ("data.negatives.train", "negatives_"), ("data.size_px", "packed"),
    ("data", None), (SPLIT, None), (SEED, "seed"),
)  # fmt: skip
_PLACE = {key: place for place, (key, _) in enumerate(_ORDER)}
_SHORT = {key: short for key, short in _ORDER if short is not None}


def varied(cells: Sequence[Settings]) -> list[str]:
    """The keys of data and training in which cells differ, the most important first.

    A key that only some cells have, like an optimizer's momentum, counts where those differ. Defaults that
    come with another optimizer, loss or schedule do not: a key of such a section counts where cells of the
    same name differ in it.
    """
    keys = {key for cell in cells for key in cell if key.startswith(("train.", "data."))}
    return sorted((key for key in keys if _differs(key, cells)), key=importance)


def _differs(key: str, cells: Sequence[Settings]) -> bool:
    values = [cell[key] for cell in cells if key in cell]
    first, plain = values[0], str | int | float | None
    if all(type(value) is type(first) and value == first for value in values) and isinstance(first, plain):
        return False  # most keys of a thousand cells
    section = key.rpartition(".")[0]
    tag = next(
        (f"{section}.{tag}" for tag in _TAGS if any(f"{section}.{tag}" in cell for cell in cells)), key
    )
    seen: dict[str, set[str]] = {}
    for cell in cells:
        if key in cell:
            alone = key in (tag, ALWAYS)  # a rate is worth telling whatever the optimizer
            group = "" if alone else json.dumps(cell.get(tag), default=str)
            seen.setdefault(group, set()).add(json.dumps(cell[key], default=str))
    return any(len(values) > 1 for values in seen.values())


def importance(key: str) -> tuple[int, str]:
    """Sorts keys, the most important first."""
    parts = key.split(".")
    known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(_PLACE[prefix] for prefix in known if prefix in _PLACE), key


def short(key: str) -> str:
    """A key's name for a column or an axis: `lr` of `train.optimizer.lr`, `optimizer` of its name."""
    section, _, last = key.rpartition(".")
    if last in _TAGS:
        return section.rpartition(".")[2]
    return (_SHORT.get(key) or last).rstrip("_")


def text(value: Any) -> str:
    """A value as a table shows it: a number in its shortest form, never rounded to another one."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return format(value, ".12g")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def recipe_name(keys: Iterable[str], settings: Settings) -> str:
    """What cells are called that differ from it in seed and split only; the model and optimizer if in nothing else."""
    kept = [key for key in keys if key != SEED and not key.startswith(f"{SPLIT}.")]
    return slug(kept, settings)


def slug(keys: Sequence[str], settings: Settings) -> str:
    """`adam-lr0.001-seed0`: the values of `keys`, each whole; those beyond the longest name are left to the hash.

    What is off, and off by itself, is left out too: `mixup0.2` is told from a name without it.
    """
    parts: list[str] = []
    told = [key for key in keys if key in settings and not _goes_without_saying(key, settings[key])]
    for key in told:
        part = _safe(_part(key, settings[key]))
        if part and len("-".join([*parts, part])) <= _LONGEST:
            parts.append(part)
    if not any(not key.startswith((SEED, SPLIT)) for key in told):
        parts[:0] = [_safe(_part(key, settings[key])) for key in ("train.model.name", "train.optimizer.name")]
    elif "train.model.name" not in keys and any(key.startswith("train.model.") for key in keys):
        # "resnet34-head" says more than "head"
        parts.insert(0, _safe(_part("train.model.name", settings["train.model.name"])))
    return "-".join(parts)


def _goes_without_saying(key: str, value: Any) -> bool:
    return _is_off(value) and key != SEED and key in _off_by_default()


def _is_off(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and value == 0)


@functools.cache
def _off_by_default() -> frozenset[str]:
    """The keys of training whose default is null, 0 or false, in each of the sections that have them."""
    found: dict[str, list[bool]] = {}
    for key, default in _defaults(TrainSpec, "train."):
        found.setdefault(key, []).append(_is_off(default))
    return frozenset(key for key, off in found.items() if all(off))


def _defaults(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        yield prefix + name, field.get_default(call_default_factory=True)
        for inner in held(field.annotation):
            yield from _defaults(inner, f"{prefix}{name}.")


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_.-")


def _part(key: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        words = "_".join(map(text, value))
    elif isinstance(value, str) and "/" in value:
        words = value.rsplit("/", 1)[-1]  # of a path, the file name
    else:
        words = text(value)
    if key in _SHORT:
        return _SHORT[key] + words
    last = key.rpartition(".")[2]
    return words if last in _TAGS else last + words if not isinstance(value, str) else f"{last}_{words}"
