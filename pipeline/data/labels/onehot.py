"""One-hot tables and CelebA's: a row per image, a column per label. Torch- and numpy-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set

from pipeline.data.labels.table import LabelTable, as_list, most_common, some
from pipeline.data.labels.text_table import Layout, TextTable, same_value
from pipeline.errors import DataError
from pipeline.spec import OneHotLabels

# how spreadsheets say that an image has a label, and that it has not
TRUE_WORDS = frozenset(
    {"1", "1.0", "true", "yes", "y", "x", "✓", "✔", "t", "ja", "oui", "si", "sí", "wahr", "vrai"}
)
FALSE_WORDS = frozenset({"0", "0.0", "false", "no", "n", "-", "f", "nein", "non", "falsch", "faux"})
_HELD = 100  # different values of a column that are counted: free text has millions
_UNKNOWN_LATER = "(unknown and soft labels are not supported yet)"


def read_onehot(
    file: Iterator[str], place: str, labels: OneHotLabels, besides: Sequence[str] = ()
) -> LabelTable:
    """Read a one-hot table; `besides` are columns that the spec uses for something else."""
    table = TextTable.read(
        file, place, Layout(delimiter=labels.delimiter, header=labels.header, id_column=labels.id_column)
    )
    id_column = table.id_column
    columns = _label_columns(table, labels, besides)
    names = [table.columns[i] for i in columns]
    result = LabelTable(names, place, header=table.first, one_row_an_image=True)
    if table.first is not None:
        _refuse_row_as_header(table, names, labels)
    cells = _Cells(labels)
    references, lines, row_P, label_P = result.references, result.lines, result.row_P, result.label_P
    numbered = list(enumerate(columns))
    for row, (line, values) in enumerate(table.rows()):
        references.append(values[id_column].strip())
        lines.append(line)
        for k, column in numbered:
            present = cells[values[column]]
            if present:
                row_P.append(row)
                label_P.append(k)
            elif present is None:
                cells.refuse(names[k], values[column], line)
    if cells.refused:
        raise DataError(_refusal(place, names, cells, len(references)))
    result.notes = table.notes
    return result


def read_celeba(text: str, place: str) -> LabelTable:
    """Read CelebA's list: the number of images, the label names, then a file name and -1 or 1 for each label."""
    lines = text.splitlines()
    if len(lines) < 3 or not lines[0].strip().isdecimal():
        raise DataError(
            f"{place}:1: not CelebA's list: its first line is the number of images, its second names the labels"
        )
    names = lines[1].split()
    result = LabelTable(names, place, one_row_an_image=True)
    for number, line in enumerate(lines[2:], 3):
        name, *values = line.split() or [""]
        if not name:
            continue
        if len(values) != len(names) or not {"1", "-1"}.issuperset(values):
            raise DataError(
                f"{place}:{number}: {line.strip()[:60]!r} is not a file name and {len(names)} values of -1 or 1"
            )
        result.add(name, (k for k, value in enumerate(values) if value == "1"), number)
    if len(result.references) != int(lines[0]):
        raise DataError(
            f"{place}: has {len(result.references)} rows, and its first line says {lines[0].strip()}; it was cut short"
        )
    return result


class _Cells(dict[str, bool | None]):
    """Cell text -> present, absent or neither (None); texts are judged once."""

    def __init__(self, labels: OneHotLabels) -> None:
        super().__init__()
        self.labels = labels
        self.refused: dict[str, Counter[str]] = {}  # column -> what it holds besides true and false
        self.first = ""

    def __missing__(self, cell: str) -> bool | None:
        present = any(same_value(cell, value) for value in self.labels.true)
        absent = any(same_value(cell, value) for value in self.labels.false)
        self[cell] = result = present if present != absent else None
        return result

    def refuse(self, column: str, cell: str, line: int) -> None:
        self.first = self.first or f"line {line}"
        held = self.refused.setdefault(column, Counter())
        held[cell.strip() if len(held) < _HELD or cell.strip() in held else "others"] += 1


def _label_columns(table: TextTable, labels: OneHotLabels, besides: Sequence[str]) -> list[int]:
    taken = {table.id_column, *(i for i, name in enumerate(table.columns) if name in besides or not name)}
    if len(table.columns) == 1 and table.columns[0].isdecimal():
        raise DataError(
            f"{table.place}:1: the header is one number; if it is CelebA's list, write labels.format: celeba"
        )
    if labels.header is False:
        raise DataError(
            f"{table.place}: has no header, so its labels have no names; write them as labels.header: [id, ...]"
        )
    taken.update(table.matching(labels.ignore, "ignore"))
    columns = (
        range(len(table.columns)) if labels.columns is None else table.matching(labels.columns, "columns")
    )
    chosen = [i for i in columns if i not in taken]
    if not chosen:
        raise DataError(f"{table.place}: has no column of labels; its columns are {table.names}")
    return chosen


def _refuse_row_as_header(table: TextTable, names: Sequence[str], labels: OneHotLabels) -> None:
    cells = _Cells(labels)
    if all(cells[name] is not None for name in names):
        raise DataError(
            f"{table.place}:1: the header holds values ({table.first}: {some(names)}), so it is a row; "
            "write the names of the columns as labels.header: [id, ...]"
        )


def _answers(refused: Mapping[str, Counter[str]]) -> dict[str, Counter[str]]:
    """The columns that say by words or by empty cells who has their label; none where no word says yes."""
    known = TRUE_WORDS | FALSE_WORDS | {""}
    found = {name: held for name, held in refused.items() if {cell.casefold() for cell in held} <= known}
    words = {cell.casefold() for held in found.values() for cell in held}
    return found if words & TRUE_WORDS else {}


def _meaning(answers: Mapping[str, Counter[str]], *, numbers: bool) -> str:
    """What the words of such columns mean; `numbers`: others of their cells are 1 and 0."""
    words = dict.fromkeys(cell for held in answers.values() for cell in sorted(held))

    def told(known: Set[str], number: str, empty: list[str]) -> str:
        chosen = [as_list([word])[1:-1] for word in words if word.casefold() in known]
        return f"[{', '.join([*([number] if numbers else []), *chosen, *empty])}]"

    empty = ["null"] if "" in words else []
    return f"labels.true: {told(TRUE_WORDS, '1', [])}, labels.false: {told(FALSE_WORDS, '0', empty)}"


def _refusal(place: str, names: Sequence[str], cells: _Cells, rows: int) -> str:
    """A sentence each on columns that answer by words, on those that are no labels, and on values without a meaning."""
    answers = _answers(cells.refused)
    ignore = [
        name
        for name, held in cells.refused.items()
        if name not in answers and held.total() == rows and not set(held) <= {"", "-1", "-1.0"}
    ]
    held = Counter[str]()
    for name, values in cells.refused.items():
        if name not in ignore and name not in answers:
            held += values
    parts = []
    if answers:
        refused = sum(held.total() for held in cells.refused.values())
        meaning = _meaning(answers, numbers=refused < rows * len(names))
        told = most_common(sum(answers.values(), Counter[str]()))
        parts.append(
            f"columns {some(answers)} hold {told}, as spreadsheets do; write {meaning} if they say who has it"
        )
    if ignore:
        shown = "; ".join(f"{name}: {most_common(cells.refused[name], 3)}" for name in ignore[:5])
        parts.append(
            f"{len(ignore)} columns hold no 0 and 1 ({shown}); leave them out by labels.ignore: {as_list(ignore)}"
        )
        if len(ignore) == len(names):
            parts[-1] += ", or, if they list labels, write labels.format: list_csv"
    if held:
        written = ", ".join("null" if value == "" else value for value in held)
        columns = some(name for name in cells.refused if name not in (*ignore, *answers))
        parts.append(
            f"columns {columns} hold {most_common(held)}, the first in {cells.first}; say what they mean by "
            f"labels.true and labels.false, e.g. labels.false: [0, {written}] {_UNKNOWN_LATER}"
        )
    return f"{place}: " + ". And ".join(parts)
