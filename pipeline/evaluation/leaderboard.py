"""The tables of results: `leaderboard.csv`, `leaderboard_seeds.csv`, `comparisons.csv`, and their text.

They contain no times or hosts, so equal results are equal bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.spec import LOWER_IS_BETTER, METRICS
from pipeline.storage.tables import read_table, write_table

VARIANTS = ("", "_at50", "_labelled")
COLUMNS = (
    *("cell", "state", "error"),
    *(f"{name}{variant}" for variant in VARIANTS for name in METRICS),
    *(f"{name}_{end}" for name in METRICS for end in ("lo", "hi")),  # 95 %, bootstrap over the images
)
SEED_COLUMNS = ("cell", "seeds", *(f"{name}_{what}" for name in METRICS for what in ("mean", "sd")))
COMPARISON_COLUMNS = ("a", "b", "metric", "difference", "lo", "hi", "p", "p_corrected", "verdict")
_PRINTED = ("f1_micro", "f1_macro", "f1_samples_empty1", "map_macro", "label_accuracy", "exact_match")


@dataclass(frozen=True)
class Row:
    """A cell, ensemble or baseline, which have metrics; in any other state a cell has an error."""

    cell: str
    state: str
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


def rank(rows: Sequence[Row], select_by: str) -> list[Row]:
    """The best by `select_by` first, those without metrics last."""
    sign = 1 if select_by in LOWER_IS_BETTER else -1
    return sorted(rows, key=lambda row: (not row.metrics, sign * row.metrics.get(select_by, 0.0), row.cell))


def write_leaderboard(path: Path, rows: Sequence[Row], select_by: str) -> None:
    """Write the rows, ranked."""
    table = [{"cell": r.cell, "state": r.state, "error": r.error, **r.metrics} for r in rank(rows, select_by)]
    write_table(path, COLUMNS, table)


def read_leaderboard(path: Path) -> list[dict[str, str]]:
    """The rows as written; raises CheckpointError where there is no leaderboard."""
    if not path.exists():
        raise CheckpointError(f"{path}: there is no leaderboard yet; run `make grid` first")
    return read_table(path)


def best_cell(rows: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """The first finished cell of a leaderboard, None where no cell finished."""
    return next((row for row in rows if row["state"] == "done"), None)


def format_table(rows: Sequence[Mapping[str, str]], select_by: str, selected: Collection[str]) -> str:
    """The leaderboard for a terminal, its cells numbered; `*` marks the selected."""
    columns = list(dict.fromkeys([select_by, *_PRINTED]))
    width = max([len(row["cell"]) for row in rows] + [4])
    head = ["   #".ljust(5) + "cell".ljust(width), select_by, "95 %".center(13)]
    lines = [" ".join([*head, *(name.rjust(max(len(name), 6)) for name in columns[1:])])]
    for number, row in enumerate(rows, 1):
        start = f"{'*' if row['cell'] in selected else ' '}{number:>3} {row['cell'].ljust(width)}"
        if not row.get(select_by):
            lines.append(f"{start} {row['state']}: {row['error']}")
            continue
        values = [f"{float(row[name]):.4f}".rjust(max(len(name), 6)) for name in columns]
        low, high = row.get(f"{select_by}_lo"), row.get(f"{select_by}_hi")
        values.insert(1, f"{float(low):.4f}-{float(high):.4f}" if low and high else " " * 13)
        lines.append(" ".join([start, *values]))
    return "\n".join(lines)


def format_comparisons(rows: Sequence[Mapping[str, str]]) -> str:
    """Which cells are significantly better than which, a line per cell that is better than another."""
    if not rows:
        return ""
    better: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "a is better":
            better.setdefault(row["a"], []).append(row["b"])
    names = list(dict.fromkeys([row["a"] for row in rows] + [row["b"] for row in rows]))
    head = f"by {rows[0]['metric']}, paired bootstrap, p < 0.05 after Holm's correction for {len(rows)} pairs"
    if not better:
        return f"{head}: no significant difference between: {', '.join(names)}"
    lines = [f"{head}:"]
    for name, beaten in better.items():
        lines.append(f"  {name} is significantly better than: {', '.join(beaten)}")
    return "\n".join(lines)
