"""A text file per label: lists of ids, NUS-WIDE's vectors of 0 and 1, Pascal VOC's flags. Torch- and numpy-free."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data.labels.table import LabelTable, read_text
from pipeline.data.sources import Source
from pipeline.errors import DataError
from pipeline.spec import VectorLabels, VocLabels

Members = Sequence[tuple[str, str]]  # (label, file)


def read_id_lists(source: Source, members: Members) -> LabelTable:
    """Read a list of ids or names per label; what no list names has no label."""
    table = _empty(source, members)
    table.lists_all_labels = True
    for k, (_, member) in enumerate(members):
        entries = _lines(source, member)
        _refuse_other_formats(f"{source.path}/{member}", entries)
        for entry in entries:
            table.add(entry, [k])
    return table


def read_vectors(source: Source, members: Members, order_member: str, labels: VectorLabels) -> LabelTable:
    """Read a 0 or 1 per image and label; the file `order` names the images."""
    table = _empty(source, members)
    table.references = _lines(source, order_member)
    for k, (_, member) in enumerate(members):
        values = read_text(source, member).split()
        place = f"{source.path}/{member}"
        if len(values) != len(table.references):
            raise DataError(
                f"{place}: holds {len(values)} values for the {len(table.references)} images of {labels.order}"
            )
        for row, value in enumerate(values):
            if value == "1":
                table.row_P.append(row)
                table.label_P.append(k)
            elif value not in ("0", "-1"):
                raise DataError(f"{place}: value {row + 1} is {value[:40]!r}; write 0 or 1")
    return table


def read_voc(source: Source, members: Members, labels: VocLabels) -> LabelTable:
    """Read an id and -1, 0 or 1 a line; 0 is an image with difficult objects of the label only."""
    table = _empty(source, members)
    rows: dict[str, int] = {}
    difficult = 0
    for k, (_, member) in enumerate(members):
        for number, line in enumerate(_lines(source, member), 1):
            words = line.split()
            if len(words) != 2 or words[1] not in ("-1", "0", "1"):
                raise DataError(f"{source.path}/{member}:{number}: {line[:60]!r} is not an id and -1, 0 or 1")
            if words[0] not in rows:
                rows[words[0]] = len(rows)
                table.add(words[0], [])
            difficult += words[1] == "0"
            if words[1] == "1" or (words[1] == "0" and labels.difficult == "present"):
                table.row_P.append(rows[words[0]])
                table.label_P.append(k)
    if difficult:
        table.notes.append(
            f"{difficult} entries are 0 (difficult): {labels.difficult}, as labels.difficult says"
        )
    return table


def _empty(source: Source, members: Members) -> LabelTable:
    table = LabelTable([label for label, _ in members], f"{source.path}/{members[0][1]}")
    for label, member in members:
        place = f"{source.path}/{member}"
        if label in table.read_from:
            raise DataError(f"{place}: the label {label!r} is also in {table.read_from[label]}; keep one")
        table.read_from[label] = place
    return table


def _lines(source: Source, member: str) -> list[str]:
    return [line.strip() for line in read_text(source, member).splitlines() if line.strip()]


def _refuse_other_formats(place: str, entries: Sequence[str]) -> None:
    if len(entries) > 2 and set(entries) == {"0", "1"}:
        raise DataError(
            f"{place}: is a 0 or 1 for each of {len(entries)} images, not a list of ids; "
            "write labels.format: vectors, and as labels.order the file that names the images in that order"
        )
    if entries and all(entry.split()[1:] in (["-1"], ["0"], ["1"]) for entry in entries):
        raise DataError(
            f"{place}: holds an id and a flag a line ({entries[0]!r}), as Pascal VOC does; write labels.format: voc"
        )
