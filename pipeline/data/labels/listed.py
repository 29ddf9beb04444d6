"""Tables whose cells list labels, a row per image or per image and label. Torch- and numpy-free."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.data.labels.table import LabelNumbers, LabelTable, some, sort_labels
from pipeline.data.labels.text_table import Layout, TextTable
from pipeline.errors import DataError
from pipeline.spec import ListColumnLabels

_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ITEM = rf"(?:{_QUOTED}|[-+.\w]+)"
_PYTHON_LIST = re.compile(
    rf"\[\s*(?:{_ITEM}(?:\s*,\s*{_ITEM})*\s*,?\s*)?\]"
)  # adjacent words without a comma are none
_ITEMS = re.compile(_ITEM)
_MISSING = frozenset({"nan", "none", "null", "n/a", "na", "<na>"})


def read_listed(file: Iterator[str], place: str, labels: ListColumnLabels) -> LabelTable:
    """Read a table whose cells list labels; rows of one image are joined."""
    table = TextTable.read(
        file, place, Layout(delimiter=labels.delimiter, header=labels.header, id_column=labels.id_column)
    )
    id_column = table.id_column
    columns = _label_columns(table, labels)
    confidence = _Confidence.of(table, labels, columns)
    cells = _Cells(labels, place)
    result = LabelTable([], place, header=table.first)
    for row, (line, values) in enumerate(table.rows()):
        result.references.append(values[id_column].strip())
        result.lines.append(line)
        if confidence is not None and not confidence.enough(values, line):
            for column in columns:
                cells.of(values[column], line)  # a label that is absent everywhere is a label too
            continue
        for column in columns:
            for label in cells.of(values[column], line):
                result.row_P.append(row)
                result.label_P.append(label)
    cells.refuse_wrong_separator()
    # several rows of one image are as many labels of it, or say the same of it twice
    result.one_row_an_image = confidence is None and not _is_long(result, cells)
    result.notes = [*table.notes, *(confidence.notes() if confidence else ())]
    return sort_labels(result, cells.numbers)


def _is_long(table: LabelTable, cells: _Cells) -> bool:
    """Whether rows hold one label each, and some image has several: a row per image and label."""
    return cells.most <= 1 and len(set(table.references)) < len(table.references)


def _label_columns(table: TextTable, labels: ListColumnLabels) -> list[int]:
    if labels.labels_column is not None:
        return table.matching(labels.labels_column, "labels_column")
    named = [i for i, name in enumerate(table.columns) if name and i != table.id_column]
    if not named:
        raise DataError(
            f"{table.place}:1: the header has only 1 column, {table.names}; name a column of labels"
        )
    return named[:1]


class _Cells:
    """What cells hold, each text judged once."""

    def __init__(self, labels: ListColumnLabels, place: str) -> None:
        self.labels, self.place = labels, place
        self.numbers = LabelNumbers()
        self.known: dict[str, tuple[int, ...]] = {"": ()}
        self.counts: Counter[str] = Counter()
        self.first_line: dict[int, int] = {}  # label -> the line it first comes in
        self.most = 0

    def of(self, cell: str, line: int) -> tuple[int, ...]:
        """The numbers of a cell's labels."""
        self.counts[cell] += 1
        found = self.known.get(cell)
        if found is None:
            self.known[cell] = found = tuple(self.numbers[name] for name in self._names(cell.strip(), line))
            self.most = max(self.most, len(found))
            for label in found:
                self.first_line.setdefault(label, line)
        return found

    def _names(self, cell: str, line: int) -> Sequence[str]:
        if cell[:1] != "[" or cell[-1:] != "]":
            return [part for part in map(str.strip, cell.split(self.labels.separator)) if part]
        try:
            items = json.loads(cell)
        except ValueError:
            if not _PYTHON_LIST.fullmatch(cell):
                raise DataError(
                    f"{self.place}:{line}: {cell[:80]!r} begins like a list and is none of Python "
                    "or JSON; correct the cell"
                ) from None
            items = [_unquoted(item) for item in _ITEMS.findall(cell)]
        return [str(item).strip() for item in items if str(item).strip()]

    def refuse_wrong_separator(self) -> None:
        """Raise a DataError where labels look like parts of something else, unless the spec lists them."""
        if self.labels.only is not None:
            return
        filled = {
            cell: count for cell, count in self.counts.items() if cell.strip() and cell.strip()[:1] != "["
        }
        total, separator = sum(filled.values()), self.labels.separator
        used = "separator" in self.labels.model_fields_set and any(separator in cell for cell in filled)
        for character in "" if used else "|;,\t":
            holding = sum(count for cell, count in filled.items() if character in cell)
            if character not in separator and 2 * holding > total:
                example = next(cell for cell in filled if character in cell)
                raise DataError(
                    f"{self.place}: {holding} of {total} cells hold {character!r}, e.g. {example!r}, and "
                    f"labels are parted by {separator!r}; write labels.separator: "
                    f"{json.dumps(character)} (or name the labels as labels.only)"
                )
        known = {*self.labels.none, *self.labels.except_}
        odd = [name for name in self.numbers if name not in known and _is_odd(name)]
        if odd:
            line = self.first_line[self.numbers[odd[0]]]
            raise DataError(
                f"{self.place}:{line}: the label {odd[0]!r} looks like no name ({len(odd)} such: "
                f"{some(map(repr, odd))}); correct labels.separator, name what means no label as "
                f"labels.none: [{odd[0]!r}], or name the labels as labels.only"
            )


def _is_odd(name: str) -> bool:
    brackets = name[0] in '[]{}"' or name[-1] in '[]{}"' or (name[0] == "'" and name[-1] == "'")
    return brackets or (name[0] == "(" and ")" not in name) or name.casefold() in _MISSING


def _unquoted(item: str) -> str:
    if item[0] in "'\"":
        return re.sub(r"\\(.)", r"\1", item[1:-1])
    return item


class _Confidence:
    """A column that says how sure a row's label is."""

    def __init__(self, column: int, name: str, labels: ListColumnLabels, place: str) -> None:
        self.column, self.name, self.place = column, name, place
        self.least = labels.min_confidence
        self.known: dict[str, bool] = {}
        self.absent = self.present = 0

    @classmethod
    def of(cls, table: TextTable, labels: ListColumnLabels, columns: Sequence[int]) -> _Confidence | None:
        name = labels.confidence_column
        if name is None:
            name = next((n for n in table.columns if n.casefold() == "confidence"), None)
        if name is None:
            if labels.min_confidence is not None:
                raise DataError(
                    f"{table.place}: has no column 'Confidence'; write labels.confidence_column: NAME ({table.names})"
                )
            return None
        column = table.column(name, "confidence_column")
        return None if column in columns else cls(column, name, labels, table.place)

    def enough(self, values: Sequence[str], line: int) -> bool:
        """Whether the row's label is present."""
        cell = values[self.column]
        if cell not in self.known:
            self.known[cell] = self._judge(cell, line)
        self.present += self.known[cell]
        self.absent += not self.known[cell]
        return self.known[cell]

    def _judge(self, cell: str, line: int) -> bool:
        try:
            value = float(cell)
        except ValueError:
            raise DataError(
                f"{self.place}:{line}: column {self.name!r} holds {cell!r}, not a number"
            ) from None
        if self.least is not None:
            return value >= self.least
        if value not in (0, 1):
            raise DataError(
                f"{self.place}:{line}: column {self.name!r} holds {cell}; write from which confidence on "
                "an image has the label, e.g. labels.min_confidence: 0.7"
            )
        return value == 1

    def notes(self) -> list[str]:
        least = 1 if self.least is None else self.least
        return [
            f"the column {self.name!r} decides: {self.present} rows with at least {least:g} are present, "
            f"{self.absent} absent"
        ]
