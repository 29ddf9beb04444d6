"""Text tables as people have them: commas, tabs or semicolons, with and without a header. Torch- and numpy-free."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from pipeline.errors import DataError
from pipeline.spec import Delimiter

_CHARACTERS: dict[Delimiter, str] = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|", "space": " "}
_UNNAMED = re.compile(r"\s*|Unnamed: \d+")  # what pandas calls a column without a name


@dataclass(frozen=True)
class Layout:
    """How a table is written, and the key of the spec that says so."""

    key: str = "data.labels"
    delimiter: Delimiter | None = None
    header: bool | tuple[str, ...] = True
    id_column: str | None = None


@dataclass
class TextTable:
    """Column names, and the rows one after another."""

    place: str
    layout: Layout
    delimiter: Delimiter
    columns: list[str]  # "" of a column without a name
    lines: Iterator[tuple[int, list[str]]]
    first: str | None = None  # the id cell of the header, where there is one
    notes: list[str] = field(default_factory=list)
    longer: int = 0  # rows with empty cells beyond the last column

    @classmethod
    def read(cls, file: Iterator[str], place: str, layout: Layout) -> TextTable:
        """The table of a file's lines with their ends; a DataError where the first cannot be one's."""
        delimiter = layout.delimiter or ("tab" if place.lower().endswith(".tsv") else "comma")
        lines = _lines(file, place, delimiter)
        first = next(lines, None)
        if first is None:
            raise DataError(f"{place}: is empty; it needs a header and a row per image")
        header: Sequence[str] = [name.strip() for name in first[1]]
        named = layout.header is True
        if not named:
            given = layout.header if isinstance(layout.header, tuple) else ()
            if given and len(given) != len(header):
                raise DataError(
                    f"{place}:{first[0]}: {len(header)} columns, but {layout.key}.header names {len(given)}"
                )
            lines = _chained(first, lines)
            header = given or [str(i + 1) for i in range(len(header))]
        table = cls(place, layout, delimiter, list(header), lines)
        table._check_header(first[1])
        if named:
            table.first = first[1][table.id_column].strip()
        return table

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of every row below the header; a DataError where one has other columns."""
        width, number = len(self.columns), 0
        for line, cells in self.lines:
            number += 1
            if len(cells) != width:
                cells = self._fitted(line, cells)
            yield line, cells
        if not number:
            raise DataError(f"{self.place}: holds no rows below its header; it needs a row per image")
        if self.longer:
            self.notes.append(f"{self.longer} rows end in a delimiter; the empty cell behind it is skipped")

    @property
    def id_column(self) -> int:
        """The column of references."""
        if self.layout.id_column is not None:
            return self.column(self.layout.id_column, "id_column")
        return next((i for i, name in enumerate(self.columns) if name), 0)

    def column(self, name: str, key: str) -> int:
        """The position of a column."""
        if name not in self.columns:
            raise DataError(
                f"{self.place}: has no column {name!r}, its columns are {self.names}; correct the file or "
                f"{self.layout.key}.{key}"
            )
        return self.columns.index(name)

    def matching(self, patterns: Iterable[str], key: str) -> list[int]:
        """The columns that names or patterns choose, in the order of the file; each must choose one."""
        chosen: set[int] = set()
        for pattern in patterns:
            found = [i for i, name in enumerate(self.columns) if name and matches(name, pattern)]
            if not found:
                self.column(pattern, key)
            chosen.update(found)
        return sorted(chosen)

    @property
    def names(self) -> str:
        """The columns' names, shortened."""
        text = ", ".join(filter(None, self.columns))
        return text if len(text) <= 200 else text[:197] + "..."

    def _check_header(self, raw: Sequence[str]) -> None:
        if len(self.columns) == 1 and (other := _other_delimiter(raw[0], self.delimiter)):
            raise DataError(
                f"{self.place}:1: the header has the one column {raw[0].strip()!r}; write "
                f"{self.layout.key}.delimiter: {other}"
            )
        skipped = [i for i, name in enumerate(self.columns) if _UNNAMED.fullmatch(name)]
        for i in skipped:
            self.columns[i] = ""
        if skipped and len(skipped) < len(self.columns):
            which = ", ".join(str(i + 1) for i in skipped)
            self.notes.append(f"column {which} has no name and is skipped")
        for name, count in Counter(filter(None, self.columns)).items():
            if count > 1:
                raise DataError(
                    f"{self.place}:1: the header has the column {name!r} {'twice' if count == 2 else f'{count} times'}"
                    "; every column needs a name of its own"
                )

    def _fitted(self, line: int, cells: list[str]) -> list[str]:
        width = len(self.columns)
        if len(cells) > width and not any(cell.strip() for cell in cells[width:]):
            self.longer += 1
            return cells[:width]
        raise DataError(
            f"{self.place}:{line}: {len(cells)} columns under a header of {width} ({self.names}); correct the row, "
            f"or {self.layout.key}.delimiter"
        )


def matches(name: str, pattern: str) -> bool:
    """Whether a name is the pattern, or one that it stands for (`dog*`)."""
    return name == pattern or fnmatchcase(name, pattern)


def same_value(cell: str, value: str) -> bool:
    """Whether a cell holds a value of the spec: as a number, or as a word in any case."""
    cell, value = cell.strip(), value.strip()
    if cell.casefold() == value.casefold():
        return True
    try:
        return float(cell) == float(value)
    except ValueError:
        return False


def _lines(file: Iterator[str], place: str, delimiter: Delimiter) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every line that is not empty."""
    if delimiter == "space":
        for number, line in enumerate(itertools.chain.from_iterable(map(str.splitlines, file)), 1):
            if cells := line.split():
                yield number, cells
        return
    reader = csv.reader(file, delimiter=_CHARACTERS[delimiter])
    try:
        for cells in reader:
            if any(cells) and any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{place}:{reader.line_num}: {error}; is a quote left open above?") from error


def _chained(
    first: tuple[int, list[str]], lines: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from lines


def _other_delimiter(header: str, delimiter: Delimiter) -> Delimiter | None:
    """What seems to part the columns of a header that was read as one."""
    others = {name: character for name, character in _CHARACTERS.items() if name not in ("space", delimiter)}
    counts = {name: header.count(character) for name, character in others.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None
