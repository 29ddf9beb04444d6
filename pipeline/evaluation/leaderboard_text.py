"""The leaderboard and what is sure of it, as text for a terminal and in sentences. No numpy."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation.leaderboard import SETTING
from pipeline.spec import LOWER_IS_BETTER
from pipeline.spec.names import importance, short

_METRICS = ("f1_micro", "f1_macro", "f1_samples_empty1", "map_macro", "label_accuracy", "exact_match")
_LISTED = 8  # cells named in a sentence
Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Recipe:
    """The cells of a leaderboard that differ in seed and split alone, the best first."""

    name: str
    rows: Rows

    def values(self, metric: str) -> list[float]:
        """Of each cell that has it."""
        return [float(row[metric]) for row in self.rows if row.get(metric)]

    def value(self, metric: str) -> float:
        """The mean over the cells."""
        return statistics.fmean(self.values(metric))

    @property
    def best(self) -> Mapping[str, str]:
        """Its best cell."""
        return self.rows[0]


def recipes(rows: Rows) -> list[Recipe]:
    """The finished cells by recipe, in the order of the leaderboard."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if row["state"] == "done":
            groups.setdefault(row.get("recipe") or row["cell"], []).append(row)
    return [Recipe(name, members) for name, members in groups.items()]


def shown_settings(rows: Rows) -> list[str]:
    """The `set/<key>` columns of a leaderboard, the most important first."""
    keys = [name.removeprefix(SETTING) for name in (rows[0] if rows else {}) if name.startswith(SETTING)]
    return sorted(keys, key=importance)


def format_table(rows: Rows, select_by: str, selected: Collection[str]) -> str:
    """The leaderboard for a terminal: a line for each recipe, numbered; `*` marks the selected.

    A recipe of several seeds or splits shows mean and standard deviation.
    """
    found = recipes(rows)
    by_name = {recipe.name: recipe for recipe in found}
    repeated = any(len(recipe.rows) > 1 for recipe in found)
    keys = [
        key
        for key in shown_settings(rows)
        if not repeated or not key.startswith(("train.seed", "data.split"))
    ]
    names = list(dict.fromkeys([select_by, *_METRICS]))
    head = ["", "#", "recipe" if repeated else "cell", *(["n"] if repeated else []), select_by]
    head += ["sd" if repeated else "95 %", *map(short, keys), *names[1:], ""]
    lines = [head]
    number = 0
    written = set()
    for row in rows:
        members = by_name.get(row.get("recipe") or row["cell"]) if row["state"] == "done" else None
        if members and members.name in written:
            continue
        number += 1
        if members and repeated:
            written.add(members.name)
            lines.append(_recipe_line(number, members, names, keys, selected))
        else:
            lines.append(_cell_line(number, row, names, keys, selected, repeated=repeated))
    widths = [max(len(line[i]) for line in lines if len(line) > i + 1) for i in range(len(head) - 1)]
    return "\n".join(_padded(line, widths) for line in lines)


def _padded(line: Sequence[str], widths: Sequence[int]) -> str:
    *cells, last = line
    texts = [
        cell.ljust(width) if i in (0, 2) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=False))
    ]
    return " ".join([*texts, last]).rstrip()


def _recipe_line(
    number: int, recipe: Recipe, names: Sequence[str], keys: Sequence[str], selected: Collection[str]
) -> list[str]:
    mark = "*" if any(row["cell"] in selected for row in recipe.rows) else ""
    values = recipe.values(names[0])
    spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    metrics = [f"{recipe.value(name):.4f}" for name in names]
    settings = [recipe.best.get(SETTING + key, "") for key in keys]
    note = "" if recipe.best.get("in_grid") != "no" else "not of this grid"
    return [
        mark,
        str(number),
        recipe.name,
        str(len(values)),
        metrics[0],
        spread,
        *settings,
        *metrics[1:],
        note,
    ]


def _cell_line(
    number: int,
    row: Mapping[str, str],
    names: Sequence[str],
    keys: Sequence[str],
    selected: Collection[str],
    *,
    repeated: bool,
) -> list[str]:
    start = ["*" if row["cell"] in selected else "", str(number), row["cell"], *([""] if repeated else [])]
    if not row.get(names[0]):
        return [*start, f"{row['state']}: {row['error']}"]
    values = [f"{float(row[name]):.4f}" for name in names]
    low, high = row.get(f"{names[0]}_lo"), row.get(f"{names[0]}_hi")
    interval = "" if repeated or not (low and high) else f"{float(low):.4f}-{float(high):.4f}"
    settings = [row.get(SETTING + key, "") for key in keys]
    note = "" if row.get("in_grid") != "no" else "not of this grid"
    return [*start, values[0], interval, *settings, *values[1:], note]


@dataclass(frozen=True)
class Verdict:
    """What the comparisons say of the first contender: which others tie with it, and which are worse."""

    first: str
    tied: tuple[str, ...]
    worse: tuple[str, ...]
    covers_seeds: bool  # else the images alone: each was trained with one seed

    @classmethod
    def of(cls, rows: Rows) -> Verdict | None:
        """Of `comparisons.csv`; None where nothing was compared."""
        if not rows:
            return None
        first = rows[0]["a"]
        own = [row for row in rows if row["a"] == first]
        tied = tuple(row["b"] for row in own if row["verdict"] == "no significant difference")
        worse = tuple(row["b"] for row in own if row["b"] not in tied)
        return cls(first, tied, worse, all(row["covers"] != "images" for row in own))


def format_comparisons(rows: Rows) -> str:
    """What is sure of the order, and what that covers."""
    verdict = Verdict.of(rows)
    if verdict is None:
        return ""
    lines = []
    if verdict.tied:
        lines.append(f"no significant difference between: {_some([verdict.first, *verdict.tied])}")
    if verdict.worse and verdict.covers_seeds:
        lines.append(f"{verdict.first} is significantly better than: {_some(verdict.worse)}")
    elif verdict.worse:
        above = "below" if rows[0]["metric"] in LOWER_IS_BETTER else "above"
        lines.append(f"on these images {verdict.first} is significantly {above}: {_some(verdict.worse)}")
    lines.append(f"({method(rows)})")
    return "\n".join(lines)


def method(rows: Rows) -> str:
    """How `comparisons.csv` was made, and what it covers."""
    pairs = f"p < 0.05 after Holm's correction for {len(rows)} pairs"
    text = f"by {rows[0]['metric']}, paired bootstrap over the images, {pairs}; "
    covers = {row["covers"] for row in rows}
    if covers == {"images and seeds"}:
        return text + "the luck of training is covered by the seeds, with Student's t"
    if covers == {"images"}:
        return text + "each was trained once: the luck of training is not covered; add grid.seeds"
    return text + "where one of a pair was trained once, the luck of its training is not covered"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
