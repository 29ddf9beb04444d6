"""The tables of results: `leaderboard.csv`, `leaderboard_seeds.csv`, `comparisons.csv`, and their text.

They contain no times or hosts, so equal results are equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.spec import LOWER_IS_BETTER, METRICS
from pipeline.spec.names import importance
from pipeline.storage.tables import read_table, write_table
from pipeline.storage.typed import typed

VARIANTS = ("", "_at50", "_labelled")
METRIC_COLUMNS = (
    *(f"{name}{variant}" for variant in VARIANTS for name in METRICS),
    *(f"{name}_{end}" for name in METRICS for end in ("lo", "hi")),  # 95 %, bootstrap over the images
)
SETTING = "set/"  # before the key of a setting in which cells differ
SEED_COLUMNS = (
    *("cell", "seeds", "splits"),
    *(f"{name}_{what}" for name in METRICS for what in ("mean", "sd")),
)
COMPARISON_COLUMNS = ("a", "b", "metric", "difference", "lo", "hi", "p", "p_corrected", "covers", "verdict")


@dataclass(frozen=True)
class Row:
    """A cell, ensemble or baseline, which have metrics; in any other state a cell has an error.

    Cells of one `recipe` differ in seed and split alone. `settings` are those in which cells differ.
    """

    cell: str
    state: str
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""
    in_grid: bool = True  # of the spec and SET that ranked it
    settings: Mapping[str, str] = field(default_factory=dict)


def rank(rows: Sequence[Row], select_by: str) -> list[Row]:
    """The best recipe first, by its mean over seeds and splits; of a recipe the best cell; those without metrics last.

    A recipe is therefore not ranked by its luckiest seed or split.
    """
    sign = 1 if select_by in LOWER_IS_BETTER else -1
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.metrics:
            values.setdefault(row.recipe or row.cell, []).append(row.metrics.get(select_by, 0.0))

    def order(row: Row) -> tuple[bool, float, str, float, str]:
        recipe = row.recipe or row.cell
        several = values.get(recipe, [0.0])
        mean = sum(several) / len(several)
        return not row.metrics, sign * mean, recipe, sign * row.metrics.get(select_by, 0.0), row.cell

    return sorted(rows, key=order)


def write_leaderboard(path: Path, rows: Sequence[Row], select_by: str) -> None:
    """Write the rows, ranked, with a column `set/<key>` for every setting in which cells differ."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    table = [
        {
            "cell": r.cell,
            "state": r.state,
            "in_grid": "yes" if r.in_grid else "no",
            "recipe": r.recipe or r.cell,
        }
        | {"error": r.error, **{SETTING + key: value for key, value in r.settings.items()}, **r.metrics}
        for r in rank(rows, select_by)
    ]
    settings = [SETTING + key for key in sorted(keys, key=importance)]
    write_table(path, ("cell", "state", "error", "in_grid", "recipe", *settings, *METRIC_COLUMNS), table)


def read_leaderboard(path: Path) -> list[dict[str, str]]:
    """The rows as written; raises CheckpointError where there is no leaderboard."""
    if not path.exists():
        raise CheckpointError(f"{path}: there is no leaderboard yet; run `{typed('grid')}` first")
    return read_table(path)


def best_cell(rows: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """The first finished cell of a leaderboard, None where no cell finished."""
    return next((row for row in rows if row["state"] == "done"), None)
