"""What a text table says of a data set: which column names images, which hold labels. Torch- and numpy-free."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.labels.onehot import FALSE_WORDS, TRUE_WORDS
from pipeline.data.labels.table import some
from pipeline.data.labels.text_table import Layout, TextTable
from pipeline.errors import DataError
from pipeline.spec import Delimiter

NamesImage = Callable[[str], bool]  # whether a text names an image of the set

_DELIMITERS: tuple[Delimiter, ...] = ("comma", "tab", "semicolon", "pipe", "space")
_SAMPLE = 400  # rows that are looked at to find the column of references
_LEAST_FOUND = 0.1  # of them: a set may be there in part
_USUAL = frozenset(
    {"1", "1.0", "true", "yes", "y", "0", "0.0", "false", "no", "n"}
)  # nobody means something else
_NEARLY = 0.9  # of a column's answers: it says who has a label, but for slips of the hand
_UNKNOWN = frozenset({"", "-1", "-1.0"})  # no answer, or an uncertain one
_ID_NAMES = re.compile(r"(?i).*(image|img|file|path|photo|picture|^id$|_id$)")
_LABEL_NAMES = re.compile(r"(?i).*(label|tag|class|categor|finding|attribut|keyword|genre|concept|object)")
_SPLIT_NAMES = re.compile(r"(?i)(split|set|subset|partition|phase|fold|data_?set|usage)")
_IS_PART = re.compile(r"(?i)is_?(train|val|valid|validation|test)\w*")
_GROUP_NAMES = re.compile(
    r"(?i)(patient|subject|person|scene|video|film|sequence|location)([ _-]?(id|no|number))?"
)
_TRAIN = frozenset({"train", "training"})
_VALIDATION = frozenset({"validation", "valid", "val", "dev"})
_TEST = frozenset({"test", "testing"})
_MAX_LABELS = 5_000


@dataclass(frozen=True)
class Reading:
    """One way to read label files: the section `data.labels`, and what the same files say of the split."""

    labels: dict[str, Any]
    rank: float  # how much the format speaks for itself, 0 to 10
    unsure: tuple[str, ...] = ()
    split: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Column:
    name: str
    cells: Counter[str]

    @property
    def rows(self) -> int:
        return self.cells.total()

    @property
    def words(self) -> set[str]:
        return {cell.casefold() for cell in self.cells}

    @property
    def is_binary(self) -> bool:
        """Whether it says for each image whether it has a label."""
        words = self.words
        return words <= TRUE_WORDS | FALSE_WORDS | _UNKNOWN and bool(words & (TRUE_WORDS | FALSE_WORDS))

    @property
    def slips(self) -> Counter[str]:
        """The cells of a column that says for nearly each image whether it has a label, and that do not say it."""
        others = Counter(
            {
                cell: n
                for cell, n in self.cells.items()
                if cell.casefold() not in TRUE_WORDS | FALSE_WORDS | _UNKNOWN
            }
        )
        answers = sum(n for cell, n in self.cells.items() if cell.casefold() in TRUE_WORDS | FALSE_WORDS)
        return others if 0 < others.total() <= (1 - _NEARLY) * (answers + others.total()) else Counter()

    @property
    def is_split(self) -> bool:
        """Whether it names parts of a split."""
        filled = self.words - {""}
        return bool(filled & _TRAIN) and filled <= _TRAIN | _VALIDATION | _TEST


@dataclass(frozen=True)
class _Table:
    settings: dict[str, Any]  # of data.labels: the file, and how it is written
    columns: list[_Column]  # those with a name, without that of references
    fit: tuple[float, int]  # how well its references name images, and the number of its columns
    unsure: tuple[str, ...] = ()


def table_readings(text: str, member: str, names_image: NamesImage) -> list[Reading]:
    """Every way to read a table's labels; none where no column of it names images."""
    tables = [table for delimiter in _DELIMITERS if (table := _table(text, member, delimiter, names_image))]
    if not tables:
        return []
    table = max(tables, key=lambda table: table.fit)
    split, ignored, unsure = _split(table)
    columns = [column for column in table.columns if column.name not in ignored]
    found = [*_onehot(table, ignored), *(_listed(table, column) for column in columns)]
    return [
        Reading(r.labels, r.rank, (*table.unsure, *r.unsure, *unsure), split) for r in found if r is not None
    ]


def _table(text: str, member: str, delimiter: Delimiter, names_image: NamesImage) -> _Table | None:
    usual = "tab" if member.lower().endswith(".tsv") else "comma"
    if delimiter == "space" and not member.lower().endswith(".txt"):
        return None
    try:
        read = TextTable.read(
            io.StringIO(text, newline=""), member, Layout(delimiter=delimiter, header=False)
        )
        rows = [[cell.strip() for cell in cells] for _, cells in read.rows()]
    except DataError:
        return None
    width = len(read.columns)
    if width < 2 or len(rows) < 2:
        return None
    fits = [_fit(rows, column, names_image) for column in range(width)]
    best = max(range(width), key=lambda column: fits[column])
    if fits[best] < _LEAST_FOUND:
        return None
    settings: dict[str, Any] = {"file": member} | ({} if delimiter == usual else {"delimiter": delimiter})
    unsure: tuple[str, ...] = ()
    if names_image(rows[0][best]):
        names = ["image" if i == best else f"column{i + 1}" for i in range(width)]
        settings["header"] = names
        unsure = (f"{member} has no header: its columns are called {some(names)}; write better names",)
    else:
        names, rows = ["" if name.startswith("Unnamed: ") else name for name in rows[0]], rows[1:]
    if names[best] != next((name for name in names if name), ""):
        settings["id_column"] = names[best]
    columns = [
        _Column(name, Counter(row[i] for row in rows)) for i, name in enumerate(names) if name and i != best
    ]
    return _Table(settings, columns, (fits[best], width), unsure)


def _fit(rows: list[list[str]], column: int, names_image: NamesImage) -> float:
    """How well a column's cells below the first line name images: 0 to 1, and a hair more for a telling name."""
    cells = [row[column] for row in rows[1 : _SAMPLE + 1]]
    if len(set(cells)) < len(cells) and set(cells) <= TRUE_WORDS | FALSE_WORDS:
        return 0.0  # answers, though images may be called 0 and 1
    found = sum(map(names_image, cells)) / len(cells)
    name = rows[0][column]
    telling = 0.06 * bool(_ID_NAMES.match(name)) - 0.06 * (not name)
    return found * (0.5 + 0.5 * len(set(cells)) / len(cells)) + telling if found else 0.0


def _split(table: _Table) -> tuple[dict[str, Any], set[str], list[str]]:
    """What columns say of split and groups; columns that are therefore no labels; what is unsure."""
    split: dict[str, Any] = {}
    group: dict[str, Any] = {}
    columns, unsure = set(), []
    for column in table.columns:
        name = column.name
        part = _IS_PART.fullmatch(name) if column.is_binary else None
        if part or (column.is_split and (_SPLIT_NAMES.fullmatch(name) or len(column.words) > 1)):
            columns.add(name)
            told = split
            if part and part[1].lower() != "test" and not split:
                true, false = sorted(column.words & TRUE_WORDS), sorted(column.words - TRUE_WORDS)
                train, validation = (true, false) if part[1].lower() == "train" else (false, true)
                split = {"method": "column", "column": name, "train": train, "validation": validation}
                told_parts = f"{some(train)} is training, {some(validation)} validation"
                unsure.append(f"the column {name!r} is taken for the split: {told_parts}")
            elif not part and column.words & _VALIDATION and "" not in column.words and not split:
                split = {"method": "column", "column": name}
            elif not part and column.words & _TEST and "" not in column.words and not split:
                tests = sorted(column.words & _TEST)
                split = {"method": "column", "column": name, "validation": tests, "test": []}
                unsure.append(
                    f"the column {name!r} has no validation: its images of {some(tests)} validate, so their score is "
                    "no longer that of images which chose nothing; mark some of the training images as validation, "
                    "and take validation and test off data.split, to keep it"
                )
            if split is told:
                unsure.append(
                    f"the column {name!r} seems to divide the images; it is neither a label nor used"
                )
        elif _GROUP_NAMES.fullmatch(name) and 1 < len(column.cells) < column.rows:
            columns.add(name)
            group = group or {"group": {"column": name}}
    return split | group, columns, unsure


# ---------------------------------------------------------------- a column per label


def _onehot(table: _Table, ignored: set[str]) -> Iterator[Reading]:
    labels = [column for column in table.columns if column.is_binary and column.name not in ignored]
    if not labels:
        return
    varied = [column for column in labels if len(column.words) > 1]
    unsure = []
    constant = [column for column in labels if varied and column not in varied]
    if constant:
        told = some([column.name for column in constant])
        unsure.append(f"{told}: the same in every row, so taken for no label")
    labels = varied or labels
    settings = {"format": "onehot_csv", **table.settings}
    kept = {column.name for column in labels}
    if others := [column.name for column in table.columns if column.name not in kept]:
        settings["ignore"] = others
    unsure += _left_out([c for c in table.columns if c.name not in kept | ignored and c not in constant])
    cells = sum((column.cells for column in labels), Counter[str]())
    words = {cell.casefold() for cell in cells}
    if others := sorted(words & TRUE_WORDS - {"1", "1.0", "true"}):
        settings["true"] = ["1", "true", *others]
    absent = sorted(words & FALSE_WORDS - {"0", "0.0", "false"})
    if unknown := words & _UNKNOWN:
        told = " and ".join(f"{cell or 'empty'} ({cells[cell]}x)" for cell in sorted(unknown))
        unsure.append(f'cells that are {told} are taken for "has not"; labels.false says so')
    if absent or unknown:
        settings["false"] = [
            0,
            *absent,
            *([-1] if unknown - {""} else []),
            *([None] if "" in unknown else []),
        ]
    if odd := sorted(words - _USUAL - _UNKNOWN):
        has = " and ".join(
            f'{word!r} is taken for "has{"" if word in TRUE_WORDS else " not"}"' for word in odd
        )
        unsure.append(f"{has}; labels.true and labels.false say so")
    rank = {0: 1, 1: 4}.get(len(varied), 7)
    yield Reading(settings, rank, tuple(unsure))


def _left_out(columns: Sequence[_Column]) -> Iterator[str]:
    for column in columns:
        if slips := column.slips:
            told = " and ".join(f"{cell!r} ({n}x)" for cell, n in slips.most_common(3))
            yield (
                f"the column {column.name!r} is left out: {column.rows - slips.total()} cells say who has it, and "
                f"{told} do not; correct them, or write what they mean in labels.true or labels.false, and "
                "take it off ignore"
            )
    if rest := [column.name for column in columns if not column.slips]:
        yield f"not taken for labels: the columns {some(rest)}"


# ---------------------------------------------------------------- a column of lists


def _listed(table: _Table, column: _Column) -> Reading | None:
    """The reading of a column that lists labels; None where its cells look like something else."""
    filled = Counter({cell: count for cell, count in column.cells.items() if cell})
    if len(filled) < 2 or column.is_binary or column.is_split or column.name.casefold() == "confidence":
        return None
    alike = [other for other in table.columns if other.words - {""} == column.words - {""}]
    if column.slips or (len(filled) == 2 and len(alike) > 1):
        return None  # a column per label, in words that are not known
    named = bool(_LABEL_NAMES.match(column.name))
    if all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", cell, re.I) for cell in filled) and not named:
        return None  # a measure
    separator, unsure = _separator(filled)
    settings = {"format": "list_csv", **table.settings}
    first = next(c.name for c in table.columns)
    if column.name != first:
        settings["labels_column"] = column.name
    if separator is None:
        many = any("," in cell for cell in filled)
        names = {name for cell in filled for name in re.split(r"[\s,]+", cell.strip("[]"))}
    else:
        parts = [[part.strip() for part in cell.split(separator)] for cell in filled]
        many, names = any(len(part) > 1 for part in parts), {name for part in parts for name in part if name}
        if separator != " ":
            settings["separator"] = separator
    # names that hardly come twice are captions, file names, numbers of something
    if len(names) > _MAX_LABELS or (not named and 2 * len(names) > filled.total()):
        return None
    missing = sorted(names & {"nan", "NaN", "None", "none", "null", "NA", "N/A"})
    if missing:
        settings["none"] = missing
    unsure += _confidence(table, settings)
    return Reading(settings, 5 + 2 * named + many if named or many else 2, tuple(unsure))


def _separator(filled: Counter[str]) -> tuple[str | None, list[str]]:
    """What parts the labels of a cell: None for lists as Python or JSON writes them."""
    if all(cell[0] == "[" and cell[-1] == "]" for cell in filled):
        return None, []
    total = filled.total()
    for character in "|;,\t":
        holding = sum(count for cell, count in filled.items() if character in cell)
        if 10 * holding > total:
            return character, []
    spaced = [cell for cell in filled if " " in cell]
    if not spaced:
        return " ", []
    if len({word for cell in filled for word in cell.split()}) <= len(filled):
        return " ", [f"spaces are taken to part labels: {spaced[0]!r} is {len(spaced[0].split())} labels"]
    return "|", [f"spaces are taken as part of a label's name: {spaced[0]!r} is one label"]


def _confidence(table: _Table, settings: dict[str, Any]) -> list[str]:
    column = next((column for column in table.columns if column.name.casefold() == "confidence"), None)
    if column is None or column.words <= {"0", "1", "0.0", "1.0"}:
        return []
    settings["min_confidence"] = 0.5
    return [f"an image has a label from {column.name} 0.5 on; labels.min_confidence says so"]
