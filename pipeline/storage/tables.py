"""Tables of text as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.storage.files import write_csv


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV of `columns`, what a row lacks left empty."""

    def text(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return f"{value:.6g}" if 0 < abs(value) < 1e-3 else f"{value:.6f}"

    write_csv(path, columns, ([text(row.get(name, "")) for name in columns] for row in rows))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, none where it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
