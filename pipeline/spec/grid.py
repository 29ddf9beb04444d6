"""From a spec with a grid to its cells: axes x cells x seeds, each checked. Torch-free."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.spec import GridSpec, Spec
from pipeline.spec.identity import canonical, digest, flatten
from pipeline.spec.reading import Loaded, assign, check, raise_mistakes
from pipeline.spec.renamed import renamed
from pipeline.spec.strict_yaml import KeyPath, Mistake, Place

_SWEPT = ("data", "train")
_SLUG_LENGTH = 60


@dataclass(frozen=True)
class Cell:
    """One training run of the grid: its spec (without a grid), and a readable name of what sets it apart."""

    spec: Spec
    slug: str
    settings: Mapping[str, Any]  # what the grid assigned: dotted key -> value

    @property
    def without_seed(self) -> str:
        """`<slug>-<hash8>` of all but the seed: the same for the seeds of one cell."""
        settings = {key: value for key, value in self.settings.items() if key != "train.seed"}
        train = self.spec.train.model_copy(update={"seed": 0})
        same = digest([canonical(self.spec.data), canonical(train)])
        return f"{_slug(self.spec, settings)}-{same[:8]}"


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
    _check_renamed(loaded)
    if document.mistakes:
        raise_mistakes(loaded.path, document.mistakes)
    # a cell has no grid; copying it for each of a thousand would cost a million values
    base = {key: value for key, value in document.value.items() if key != "grid"}
    cells: list[Cell] = []
    seen: dict[str, str] = {}
    unused = set(range(len(grid.exclude)))
    for entries in itertools.product(*_columns(grid)):
        settings = {key: value for entry in entries for key, value in entry.assignments}
        spec = _resolve(loaded, base, entries)
        if spec is None:
            continue
        excluded = {i for i, rule in enumerate(grid.exclude) if matches(spec, rule)}
        unused -= excluded
        if excluded:
            continue
        slug = _slug(spec, settings)
        same = digest([canonical(spec.data), canonical(spec.train)])
        if same in seen:
            text = f"{slug!r} is the same run as {seen[same]!r}; remove one, or exclude it"
            document.mistakes.append(Mistake(document.place(entries[-1].place_of), ("grid",), text))
        seen[same] = slug
        cells.append(Cell(spec=spec, slug=slug, settings=settings))
    for i in sorted(unused):
        key: KeyPath = ("grid", "exclude", i)
        document.mistakes.append(Mistake(document.place(key), key, "excludes no cell; correct or remove it"))
    if not cells and not document.mistakes:
        document.mistakes.append(Mistake(document.place(("grid",)), ("grid",), "every cell is excluded"))
    _check_overrides(loaded, cells)
    if document.mistakes:
        raise_mistakes(loaded.path, document.mistakes)
    return cells


def _columns(grid: GridSpec) -> Iterator[list[_Entry]]:
    for key, values in grid.axes.items():
        yield [_Entry(((key, v),), ("grid", "axes", key, i)) for i, v in enumerate(values)]
    if grid.cells:
        yield [_Entry(tuple(cell.items()), ("grid", "cells", i)) for i, cell in enumerate(grid.cells)]
    if grid.seeds:
        yield [_Entry((("train.seed", seed),), ("grid", "seeds", i)) for i, seed in enumerate(grid.seeds)]
    if not (grid.axes or grid.cells or grid.seeds):
        yield [_Entry((), ("train",))]


def _resolve(loaded: Loaded, base: dict[str, Any], entries: tuple[_Entry, ...]) -> Spec | None:
    tree = copy.deepcopy(base)
    assigned_at: dict[KeyPath, Place] = {}  # a mistake in what the grid assigned points at the grid's line
    for entry in entries:
        for key, value in entry.assignments:
            path = tuple(key.split("."))
            assign(tree, path, copy.deepcopy(value))
            assigned_at[path] = loaded.document.place((*entry.place_of, key))
    return check(tree, loaded.document, loaded.root, assigned_at)


def _check_keys(loaded: Loaded) -> None:
    grid, document = loaded.spec.grid, loaded.document
    listed: list[tuple[str, KeyPath]] = [(key, ("grid", "axes", key)) for key in grid.axes]
    for name, rules in (("cells", grid.cells), ("exclude", grid.exclude)):
        listed += [(key, ("grid", name, i, key)) for i, rule in enumerate(rules) for key in rule]
    path: KeyPath
    for key, path in listed:
        if key.split(".")[0] not in _SWEPT:
            text = f"a grid varies data.* or train.*, e.g. train.optimizer.lr; got `{key}`"
            document.mistakes.append(Mistake(document.place(path), path, text))
    for key, values in grid.axes.items():
        if not values:
            path = ("grid", "axes", key)
            document.mistakes.append(Mistake(document.place(path), path, "an axis needs at least one value"))
    assigned = [key for cell in (grid.axes, *grid.cells) for key in cell]
    if grid.seeds and "train.seed" in assigned:
        text = "both seeds and train.seed vary the seed; use one"
        document.mistakes.append(Mistake(document.place(("grid", "seeds")), ("grid", "seeds"), text))


def _check_renamed(loaded: Loaded) -> None:
    """Old names of keys; in `exclude` and `when` they would silently never match."""
    grid, document = loaded.spec.grid, loaded.document
    rules: list[tuple[KeyPath, Mapping[str, Any]]] = [(("grid", "axes"), dict.fromkeys(grid.axes))]
    rules += [(("grid", "cells", i), dict.fromkeys(cell)) for i, cell in enumerate(grid.cells)]
    rules += [(("grid", "exclude", i), rule) for i, rule in enumerate(grid.exclude)]
    rules += [(("run", "resources", i, "when"), r.when) for i, r in enumerate(loaded.spec.run.resources)]
    for path, rule in rules:
        for key, value in rule.items():
            for text in filter(None, (renamed(full.split(".")) for full in flatten({key: value}))):
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


def matches(spec: Spec, rule: Mapping[str, Any]) -> bool:
    """Whether every dotted key of `rule` has its value in `spec`."""
    return all(_holds(_lookup(spec, key), value) for key, value in rule.items())


def _lookup(spec: Spec, key: str) -> Any:
    value: Any = spec
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def _holds(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return all(_holds(getattr(value, name, None), item) for name, item in wanted.items())
    return bool(value == wanted)


def _slug(spec: Spec, settings: Mapping[str, Any]) -> str:
    if not settings:
        return f"{spec.train.model.name}-{spec.train.optimizer.name}"
    parts = [part for key, value in settings.items() for part in _words(key.rsplit(".", 1)[-1], value)]
    if any(key.startswith("train.model.") for key in settings) and spec.train.model.name not in parts:
        parts.insert(0, spec.train.model.name)  # "resnet34-head" says more than "head"
    text = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-.")
    return text[:_SLUG_LENGTH].rstrip("-.")


def _words(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda item: item[0] not in ("name", "method", "format"))
        return [word for name, item in ordered for word in _words(name, item)]
    if isinstance(value, tuple):
        return [key + "_".join(_word(item) for item in value)]
    if isinstance(value, str):
        return [value.rsplit("/", 1)[-1]]  # of a path, the file name
    return [f"{key}{_word(value)}"]


def _word(value: Any) -> str:
    return format(value, "g") if isinstance(value, float) else str(value).lower()
