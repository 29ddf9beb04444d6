"""Columns of tables that say of every image in which split, or in which group, it is."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.labels import find_file
from pipeline.data.labels.table import read_lines, some
from pipeline.data.labels.text_table import Layout, TextTable
from pipeline.data.packed import PackedSet
from pipeline.data.parts import Sources, column_specs, parts_of, table_of
from pipeline.data.references import AMBIGUOUS, Finder
from pipeline.errors import DataError
from pipeline.spec import ColumnSpec, DataSpec, TableLabels

Cells = tuple[str | None, ...]  # of each image of a packed set; None where the table does not mention it


@dataclass(frozen=True)
class SplitColumns:
    """What tables say of the images of a packed set, in its order."""

    split: Cells | None = None
    group: Cells | None = None


def read_columns(data: DataSpec, packed: PackedSet) -> SplitColumns:
    """Read the columns that the split needs; raises DataError where a table contradicts itself."""
    cells = {key: _read(data, key, column, packed) for key, column in column_specs(data).items()}
    return SplitColumns(cells.get("data.split"), cells.get("data.split.group"))


def _read(data: DataSpec, key: str, column: ColumnSpec, packed: PackedSet) -> Cells:
    path, file = table_of(data, column, key)
    labels = data.labels if column.file is None and isinstance(data.labels, TableLabels) else None
    layout = Layout(
        key,
        column.delimiter or (labels.delimiter if labels else None),
        labels.header if labels else column.header,
        column.id_column or (labels.id_column if labels else None),
    )
    with Sources() as sources:
        member = find_file(sources(path), file, f"{key}.file")
        table = TextTable.read(read_lines(sources(path), member), f"{path}/{member}", layout)
        folder = member.rpartition("/")[0] if path == parts_of(data)[0].source else ""
        return _cells(table, column.column, folder, packed)


def _cells(table: TextTable, column: str, folder: str, packed: PackedSet) -> Cells:
    """What a column says of each image; `folder` is where the table lies in their source."""
    position, id_column = table.column(column, "column"), table.id_column
    finder = Finder(packed.index)
    cells: list[str | None] = [None] * len(packed)
    unclear, different = [], []
    for line, values in table.rows():
        row = finder.find(values[id_column].strip(), folder)
        value = values[position].strip()
        if row == AMBIGUOUS:
            unclear.append(values[id_column].strip())
        elif row >= 0 and cells[row] not in (None, value):
            different.append(f"line {line}: {packed.paths[row]} is {value!r}, and was {cells[row]!r}")
        elif row >= 0:
            cells[row] = value
    if unclear:
        raise DataError(f"{table.place}: {finder.explain(unclear)}")
    if different:
        raise DataError(f"{table.place}: {len(different)} rows contradict another: {some(different, 3)}")
    return tuple(cells)
