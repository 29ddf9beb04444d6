"""`leaderboard.csv`: a row per cell and baseline, best first; no times or hosts, so equal results are equal bytes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.files import atomic_write
from pipeline.metrics import METRICS
from pipeline.spec import LOWER_IS_BETTER

VIEWS = ("", "_at50", "_labelled")
COLUMNS = ("cell", "state", "error", *(f"{name}{view}" for view in VIEWS for name in METRICS))
_PRINTED = ("f1_micro", "f1_macro", "f1_samples_empty1", "map_macro", "label_accuracy", "exact_match")


@dataclass(frozen=True)
class Row:
    """A cell or baseline: `done` and `baseline` have metrics, anything else an error."""

    cell: str
    state: str
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


def write_leaderboard(path: Path, rows: Sequence[Row], select_by: str) -> None:
    """Write the rows, best by `select_by` first, those without metrics last."""
    sign = 1 if select_by in LOWER_IS_BETTER else -1

    def rank(row: Row) -> tuple[bool, float, str]:
        return not row.metrics, sign * row.metrics.get(select_by, 0.0), row.cell

    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in sorted(rows, key=rank):
            values = [f"{row.metrics[name]:.6f}" if name in row.metrics else "" for name in COLUMNS[3:]]
            writer.writerow([row.cell, row.state, row.error, *values])


def read_leaderboard(path: Path) -> list[dict[str, str]]:
    """The rows as written; raises CheckpointError where there is no leaderboard."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise CheckpointError(f"{path}: there is no leaderboard yet; run `make grid` first") from error


def best_cell(rows: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """The first finished cell of a leaderboard, None where no cell finished."""
    return next((row for row in rows if row["state"] == "done"), None)


def format_table(rows: Sequence[Mapping[str, str]], select_by: str, selected: str | None) -> str:
    """The leaderboard for a terminal; `*` marks the selected cell."""
    columns = list(dict.fromkeys([select_by, *_PRINTED]))
    width = max([len(row["cell"]) for row in rows] + [4])
    head = "  " + " ".join(["cell".ljust(width), *(name.rjust(max(len(name), 6)) for name in columns)])
    lines = [head]
    for row in rows:
        mark = "*" if row["cell"] == selected else " "
        if row.get(select_by):
            values = [f"{float(row[name]):.4f}".rjust(max(len(name), 6)) for name in columns]
        else:
            values = [f"{row['state']}: {row['error']}"]
        lines.append(f"{mark} " + " ".join([row["cell"].ljust(width), *values]))
    return "\n".join(lines)
