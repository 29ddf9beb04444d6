"""What every reader gives: references to images, and which label each of them has. Torch- and numpy-free."""

from __future__ import annotations

import io
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.data.sources import READ_ERRORS, Source
from pipeline.errors import DataError
from pipeline.spec.strict_yaml import BOOLEAN_TRAPS, scalar

_AS_UTF8 = "save it as UTF-8 (a spreadsheet: as CSV UTF-8), or convert it, e.g. by iconv -f LATIN1 -t UTF-8"
_LINE = 64 << 20  # characters: an archive bomb may be one line


@dataclass
class LabelTable:
    """Labels in their order, references in the file's order, and the pairs of both that are present.

    A million rows are held as two arrays of numbers, not as lists of lists.
    """

    labels: list[str]
    place: str  # the file, for messages
    read_from: dict[str, str] = field(default_factory=dict)  # label -> its own file, where each has one
    references: list[str] = field(default_factory=list)  # ids, names or paths
    lines: array[int] = field(
        default_factory=lambda: array("q")
    )  # of each reference; empty where there are none
    row_P: array[int] = field(default_factory=lambda: array("q"))  # reference of each pair
    label_P: array[int] = field(default_factory=lambda: array("q"))  # label of each pair
    one_row_an_image: bool = False  # two rows for one image must then be the same
    lists_all_labels: bool = False  # an image that is not mentioned has no label, instead of unknown ones
    header: str | None = None  # the first line's id cell: it must not be an image
    folder: str = ""  # where the file lies in the images' source
    merge_copies: bool = False  # equal pictures are one image with the labels of all
    notes: list[str] = field(default_factory=list)  # what was skipped or assumed

    def add(self, reference: str, labels: Iterable[int], line: int | None = None) -> None:
        """One row: a reference and the numbers of its labels."""
        row = len(self.references)
        self.references.append(reference)
        if line is not None:
            self.lines.append(line)
        for label in labels:
            self.row_P.append(row)
            self.label_P.append(label)

    def place_of(self, row: int) -> str:
        """The file and line of a reference."""
        return f"{self.place}:{self.lines[row]}" if len(self.lines) else self.place

    def file_of(self, label: int) -> str:
        """The file a label was read from."""
        return self.read_from.get(self.labels[label], self.place)


class LabelNumbers(dict[str, int]):
    """Label -> number, in the order in which labels first come."""

    def __missing__(self, label: str) -> int:
        self[label] = number = len(self)
        return number


def sort_labels(table: LabelTable, numbers: LabelNumbers) -> LabelTable:
    """Order the labels by name, for files that have no order of their own."""
    table.labels = sorted(numbers)
    new = {numbers[label]: k for k, label in enumerate(table.labels)}
    table.label_P = array("q", (new[number] for number in table.label_P))
    return table


def read_text(source: Source, member: str) -> str:
    """A text file of a source; a DataError where it is not UTF-8 or cannot be read."""
    place = f"{source.path}/{member}"
    try:
        return source.read(member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text ({error.reason} at byte {error.start}); {_AS_UTF8}"
        ) from error
    except READ_ERRORS as error:
        raise DataError(f"{place}: cannot be read: {error}; copy it here again") from error


def read_lines(source: Source, member: str) -> Iterator[str]:
    """The lines of a text file of any size with their ends, one by one; a DataError as `read_text` raises it."""
    place = f"{source.path}/{member}"
    try:
        with source.open(member) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as lines:
            try:
                while line := lines.readline(_LINE):
                    if len(line) == _LINE:
                        raise DataError(f"{place}: a line has {_LINE:,} characters or more; it is no table")
                    yield line
            except UnicodeDecodeError as error:
                at = stream.tell() - len(error.object) + error.start
                raise DataError(
                    f"{place}: not UTF-8 text ({error.reason} at byte {at}); {_AS_UTF8}"
                ) from error
    except READ_ERRORS as error:
        raise DataError(f"{place}: cannot be read: {error}; copy it here again") from error


def some(texts: Iterable[str], shown: int = 5) -> str:
    """A few of them, and how many more there are."""
    known = list(texts)
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return ", ".join(known[:shown]) + more


def as_list(names: Iterable[str]) -> str:
    """Names as a list of YAML, for a line that a person copies."""
    plain = re.compile(r"[A-Za-z_][\w ./-]*")

    def written(name: str) -> str:
        is_word = plain.fullmatch(name) and scalar(name) is name and name.lower() not in BOOLEAN_TRAPS
        return name if is_word else json.dumps(name, ensure_ascii=False)

    return f"[{', '.join(map(written, names))}]"


def most_common(counter: Counter[str], shown: int = 5) -> str:
    """The most frequent values with their counts."""
    more = f" and {len(counter) - shown} more" if len(counter) > shown else ""
    return ", ".join(f"{value or 'empty'} ({n}x)" for value, n in counter.most_common(shown)) + more
