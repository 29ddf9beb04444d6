"""From a spec with a grid to its cells: axes x cells x seeds, each checked. Torch-free."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from pipeline.spec import GridSpec, Spec
from pipeline.spec.explaining import unknown_key
from pipeline.spec.identity import canonical, digest, flatten
from pipeline.spec.names import slug, varied
from pipeline.spec.names import text as shown
from pipeline.spec.reading import Loaded, assign, check, is_key, raise_mistakes, spec_parts
from pipeline.spec.renamed import renamed
from pipeline.spec.strict_yaml import KeyPath, Mistake, Place

_SWEPT = ("data", "train")
_ABSENT = object()


@dataclass(frozen=True)
class Cell:
    """One training run of the grid: its spec (without a grid), and a readable name of what sets it apart."""

    spec: Spec
    slug: str
    settings: Mapping[str, Any]  # what the grid assigned: dotted key -> value


@dataclass(frozen=True)
class _Entry:
    """One value of an axis, or one listed cell: assignments and where they were written."""

    assignments: tuple[tuple[str, Any], ...]
    place_of: KeyPath


def expand_grid(loaded: Loaded) -> list[Cell]:
    """The cells of a spec, in the order they are written; raises SpecError listing every mistake.

    Two cells that would be the same run, an axis over something that is not data or train, an
    override without effect and an `exclude` that excludes nothing are mistakes.
    """
    grid, document = loaded.spec.grid, loaded.document
    _check_keys(loaded)
    _check_named(loaded)
    if document.mistakes:
        raise_mistakes(loaded.path, document.mistakes)
    # a cell has no grid; copying it for each of a thousand would cost a million values
    base = {key: value for key, value in document.value.items() if key != "grid"}
    cells: list[Cell] = []
    seen: dict[str, str] = {}
    unused = set(range(len(grid.exclude)))
    for entries in itertools.product(*_columns(grid)):
        settings = {key: value for entry in entries for key, value in entry.assignments}
        tree, assigned_at = _assigned_tree(loaded, base, entries)
        # as it is written, so that a combination that cannot be is left out without a mistake
        excluded = {i for i, rule in enumerate(grid.exclude) if matches(tree, rule)}
        spec = None if excluded else check(tree, loaded.document, loaded.root, assigned_at)
        if spec is not None:
            excluded = {i for i, rule in enumerate(grid.exclude) if matches(spec, rule)}
        unused -= excluded
        if spec is None or excluded:
            continue
        same = digest([canonical(spec.data), canonical(spec.train)])
        written = ", ".join(f"{key} {shown(value)}" for key, value in settings.items())
        if same in seen:
            text = f"({written}) is the same run as ({seen[same]}); remove one, or exclude it"
            document.mistakes.append(Mistake(document.place(entries[-1].place_of), ("grid",), text))
        seen[same] = written
        cells.append(Cell(spec=spec, slug="", settings=settings))
    for i in sorted(unused):
        key: KeyPath = ("grid", "exclude", i)
        document.mistakes.append(Mistake(document.place(key), key, "excludes no cell; correct or remove it"))
    if not cells and not document.mistakes:
        document.mistakes.append(Mistake(document.place(("grid",)), ("grid",), "every cell is excluded"))
    _check_overrides(loaded, cells)
    if document.mistakes:
        raise_mistakes(loaded.path, document.mistakes)
    return _named(cells)


def _named(cells: Sequence[Cell]) -> list[Cell]:
    """Each called by what the grid assigned and the cells differ in."""
    assigned = {leaf for cell in cells for leaf in flatten({k: _plain(v) for k, v in cell.settings.items()})}
    resolved = [_leaves(cell.spec, assigned) for cell in cells]
    keys = varied(resolved)
    names = [
        slug(keys, leaves | _leaves(cell.spec, ("train.model.name", "train.optimizer.name")))
        for cell, leaves in zip(cells, resolved, strict=True)
    ]
    return [replace(cell, slug=name) for cell, name in zip(cells, names, strict=True)]


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _leaves(spec: Spec, keys: Iterable[str]) -> dict[str, Any]:
    """What a spec has of these dotted keys."""
    found = {}
    for key in keys:
        value = _lookup(spec, key, _ABSENT)
        if value is not _ABSENT:
            found[key] = _short(value)
    return found


def _short(value: Any) -> Any:
    """A list of sections as names of cells show it: without what was left out."""
    if isinstance(value, tuple):
        return tuple(
            item.model_dump(exclude_none=True) if isinstance(item, BaseModel) else item for item in value
        )
    return value


def _columns(grid: GridSpec) -> Iterator[list[_Entry]]:
    for key, values in grid.axes.items():
        yield [_Entry(((key, v),), ("grid", "axes", key, i)) for i, v in enumerate(values)]
    if grid.cells:
        yield [_Entry(tuple(cell.items()), ("grid", "cells", i)) for i, cell in enumerate(grid.cells)]
    if grid.seeds:
        yield [_Entry((("train.seed", seed),), ("grid", "seeds", i)) for i, seed in enumerate(grid.seeds)]
    if not (grid.axes or grid.cells or grid.seeds):
        yield [_Entry((), ("train",))]


def _assigned_tree(
    loaded: Loaded, base: dict[str, Any], entries: tuple[_Entry, ...]
) -> tuple[dict[str, Any], dict[KeyPath, Place]]:
    """A cell's document, not yet checked; a mistake in what the grid assigned points at the grid's line."""
    tree = copy.deepcopy(base)
    assigned_at: dict[KeyPath, Place] = {}
    for entry in entries:
        for key, value in entry.assignments:
            path = tuple(key.split("."))
            assign(tree, path, copy.deepcopy(value))
            assigned_at[path] = loaded.document.place((*entry.place_of, key))
    return tree, assigned_at


def _check_keys(loaded: Loaded) -> None:
    grid, document = loaded.spec.grid, loaded.document
    listed: list[tuple[str, KeyPath]] = [(key, ("grid", "axes", key)) for key in grid.axes]
    for name, rules in (("cells", grid.cells), ("exclude", grid.exclude)):
        listed += [(key, ("grid", name, i, key)) for i, rule in enumerate(rules) for key in rule]
    path: KeyPath
    for key, path in listed:
        if key.split(".")[0] not in _SWEPT:
            is_key = key.split(".")[0] in Spec.model_fields
            meant = "" if is_key else unknown_key({}, (key,), spec_parts()).removeprefix("unknown key")
            text = f"a grid varies data.* or train.*, e.g. train.optimizer.lr; got `{key}`{meant}"
            document.mistakes.append(Mistake(document.place(path), path, text))
    for key, values in grid.axes.items():
        if not values:
            path = ("grid", "axes", key)
            document.mistakes.append(Mistake(document.place(path), path, "an axis needs at least one value"))
    assigned = [key for cell in (grid.axes, *grid.cells) for key in cell]
    if grid.seeds and "train.seed" in assigned:
        text = "both seeds and train.seed vary the seed; use one"
        document.mistakes.append(Mistake(document.place(("grid", "seeds")), ("grid", "seeds"), text))


def _check_named(loaded: Loaded) -> None:
    """Keys that are called otherwise, or that no spec has; in `exclude` and `when` they would never match."""
    grid, document = loaded.spec.grid, loaded.document
    rules: list[tuple[KeyPath, Mapping[str, Any]]] = [(("grid", "axes"), dict.fromkeys(grid.axes))]
    rules += [(("grid", "cells", i), dict.fromkeys(cell)) for i, cell in enumerate(grid.cells)]
    rules += [(("grid", "exclude", i), rule) for i, rule in enumerate(grid.exclude)]
    rules += [(("run", "resources", i, "when"), r.when) for i, r in enumerate(loaded.spec.run.resources)]
    for path, rule in rules:
        for key, value in rule.items():
            for full in flatten({key: value}):
                text = renamed(full.split("."))
                if not text and path[1] not in ("axes", "cells") and not is_key(full):
                    text = unknown_key({}, tuple(full.split(".")), spec_parts())
                if text:
                    document.mistakes.append(Mistake(document.place((*path, key)), (*path, key), text))


def _check_overrides(loaded: Loaded, cells: list[Cell]) -> None:
    """An override that every cell assigns anew would be silently without effect."""
    for path, place in list(loaded.document.places.items()):
        if not place.file.startswith("--set "):
            continue
        key = ".".join(str(part) for part in path)
        if cells and all(_assigned(key, cell.settings) for cell in cells):
            text = "has no effect: the grid sets it in every cell; override grid.axes or edit the grid"
            loaded.document.mistakes.append(Mistake(Place(place.file), path, text))


def _assigned(key: str, settings: Mapping[str, Any]) -> bool:
    return any(key == other or key.startswith(other + ".") for other in settings)


def matches(spec: Spec | Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether every dotted key of `rule` has its value in `spec`, which may be a document as it is written."""
    return all(_holds(_lookup(spec, key), value) for key, value in rule.items())


def _lookup(section: Any, key: str, absent: Any = None) -> Any:
    value = section
    for part in key.split("."):
        value = value.get(part, absent) if isinstance(value, dict) else getattr(value, part, absent)
    return value


def _holds(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return all(_holds(_lookup(value, name), item) for name, item in wanted.items())
    return bool(value == wanted)
