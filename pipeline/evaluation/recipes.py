"""Which finished cells are one recipe (equal but for seed and split), and what cells differ in. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import yaml

from pipeline.evaluation.kept import CellEvaluation
from pipeline.spec.identity import digest, flatten
from pipeline.spec.names import ALWAYS, SEED, SPLIT, recipe_name, text, varied
from pipeline.storage.run_dir import RunDir

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # fast: a sweep has a thousand specs


def settings_of(run: RunDir) -> dict[str, Any]:
    """The resolved spec of a cell as dotted keys; {} where it cannot be read."""
    try:
        return flatten(yaml.load(run.spec.read_text(encoding="utf-8"), _LOADER) or {})  # noqa: S506 - a safe loader
    except (OSError, yaml.YAMLError):
        return {}


def named(cells: Sequence[CellEvaluation], in_grid: Collection[str]) -> list[CellEvaluation]:
    """The cells, their rows with recipe, settings in which they differ, and whether they are of the grid."""
    known = [dict(cell.spec) for cell in cells]
    keys = varied(known)
    columns = list(dict.fromkeys([*keys, *([ALWAYS] if len(cells) > 1 else [])]))
    hashes = [_hash(settings) or cell.row.cell for cell, settings in zip(cells, known, strict=True)]
    names: dict[str, str] = {}
    for key, settings, cell in zip(hashes, known, cells, strict=True):
        name = recipe_name(keys, settings) if ALWAYS in settings else cell.row.cell
        taken = name in names.values() and key not in names
        names.setdefault(key, f"{name}-{key[:8]}" if taken else name)
    return [
        replace(
            cell,
            row=replace(
                cell.row,
                recipe=names[key],
                in_grid=cell.row.cell in in_grid,
                settings={name: text(settings[name]) for name in columns if name in settings},
            ),
        )
        for cell, settings, key in zip(cells, known, hashes, strict=True)
    ]


def _hash(settings: dict[str, Any]) -> str:
    """Of all that makes a recipe; "" of a cell whose spec is not known."""
    kept = {key: value for key, value in settings.items() if key.startswith(("data.", "train."))}
    kept = {key: value for key, value in kept.items() if key != SEED and not key.startswith(f"{SPLIT}.")}
    return digest(kept) if kept else ""
