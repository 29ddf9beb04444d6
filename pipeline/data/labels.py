"""Read labels from id lists, CSV or COCO files: which images have which label. Torch-free."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from pipeline.data.sources import READ_ERRORS, Source, match_members, parse_list
from pipeline.errors import DataError
from pipeline.spec import CocoLabels, IdListLabels, LabelsSpec, ListColumnLabels, OneHotLabels

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# N images, K labels
MAX_LABELS = 5_000  # labels are held densely, and counted in pairs
_TOO_MANY = f"more than {MAX_LABELS}"
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false", "")


@dataclass
class LabelTable:
    """Labels in their order, and for each the references (id, name or path) of the images that have it."""

    labels: list[str]
    images_by_label: dict[str, list[str]]
    # every image the file mentions, negative images included; None: all images count as mentioned (id lists)
    mentioned: list[str] | None = None
    read_from: dict[str, str] = field(default_factory=dict)  # label -> the file it was read from


def label_members(source: Source, labels: LabelsSpec) -> list[tuple[str, str]]:
    """(label, member) of the files that hold the labels; ("", member) where one file holds all.

    Raises DataError where there are none.
    """
    if isinstance(labels, IdListLabels):
        wanted, found = labels.files, sorted(match_members(source.members, labels.files, "label"))
    else:
        wanted = labels.file
        found = [("", m) for m in source.members if m == wanted or m.endswith("/" + wanted)]
        if len(found) > 1:
            both = " and ".join(member for _, member in found[:2])
            raise DataError(f"{source.path}: {both} are both {wanted!r}; name its folder too")
    if not found:
        raise DataError(
            f"{source.path}: no label file is named {wanted!r}; correct data.labels, "
            "or name another folder or archive as data.labels.source"
        )
    return found


def read_labels(source: Source, labels: LabelsSpec) -> LabelTable:
    """The labels of `source` in the spec's format; a DataError names the file, line and value at fault."""
    members = label_members(source, labels)
    place = f"{source.path}/{members[0][1]}"
    if len(members) > MAX_LABELS:
        raise DataError(f"{place}: is one of {len(members)} label files, {_TOO_MANY}")
    table = _read(source, labels, members, place)
    if not 0 < len(table.labels) <= MAX_LABELS:
        problem = f"{len(table.labels)} labels, {_TOO_MANY}" if table.labels else "no label at all"
        raise DataError(f"{place}: holds {problem}; check that data.labels describes its format")
    return table


def _read(source: Source, labels: LabelsSpec, members: Sequence[tuple[str, str]], place: str) -> LabelTable:
    if isinstance(labels, IdListLabels):
        return _read_id_lists(source, members)
    text = _text(source, members[0][1])
    if isinstance(labels, OneHotLabels):
        return _read_onehot(text, place, labels)
    if isinstance(labels, ListColumnLabels):
        return _read_list_column(text, place, labels)
    if isinstance(labels, CocoLabels):
        return _read_coco(text, place, labels)
    assert_never(labels)


def to_multi_hot(
    table: LabelTable, images: int, find: Callable[[str], int | None]
) -> tuple[npt.NDArray[np.uint8], list[tuple[str, str]]]:
    """(images, K) uint8 of 0 and 1, and the (label, reference) pairs that name no image."""
    import numpy as np

    labels_NK = np.zeros((images, len(table.labels)), np.uint8)
    unknown = []
    for k, label in enumerate(table.labels):
        for reference in table.images_by_label[label]:
            row = find(reference)
            if row is None:
                unknown.append((label, reference))
            else:
                labels_NK[row, k] = 1
    return labels_NK, unknown


def _read_id_lists(source: Source, members: Sequence[tuple[str, str]]) -> LabelTable:
    table = LabelTable([], {})
    for label, member in members:
        place = f"{source.path}/{member}"
        if label in table.images_by_label:
            raise DataError(f"{place}: the label {label!r} is also in {table.read_from[label]}; keep one")
        table.labels.append(label)
        table.images_by_label[label] = parse_list(_text(source, member).encode())
        table.read_from[label] = place
    return table


def _read_onehot(text: str, place: str, labels: OneHotLabels) -> LabelTable:
    header, rows = _csv(text, place)
    id_column = _column(header, labels.id_column, 0, place, "labels.id_column")
    names = [name for i, name in enumerate(header) if i != id_column]
    if not names:
        raise DataError(f"{place}:1: the header has the one column {header[0]!r}; separate columns by commas")
    images_by_label: dict[str, list[str]] = {name: [] for name in names}
    seen: dict[str, int] = {}
    for line, row in rows:
        image = row[id_column].strip()
        if image in seen:
            raise DataError(f"{place}:{line}: {image} has a row already, in line {seen[image]}; keep one")
        seen[image] = line
        for name, value in zip(header, row, strict=True):
            plain = value.strip().lower()
            if name in images_by_label and plain in _TRUE:
                images_by_label[name].append(image)
            elif name in images_by_label and plain not in _FALSE:
                raise DataError(f"{place}:{line}: column {name!r} holds {value!r}; write 0 or 1")
    return LabelTable(names, images_by_label, list(seen), dict.fromkeys(names, place))


def _read_list_column(text: str, place: str, labels: ListColumnLabels) -> LabelTable:
    header, rows = _csv(text, place)
    id_column = _column(header, labels.id_column, 0, place, "labels.id_column")
    labels_column = _column(header, labels.labels_column, 1, place, "labels.labels_column")
    images_by_label: dict[str, list[str]] = {}
    mentioned: dict[str, None] = {}
    for _, row in rows:
        image = row[id_column].strip()
        mentioned[image] = None
        for name in filter(None, (part.strip() for part in row[labels_column].split(labels.separator))):
            images_by_label.setdefault(name, []).append(image)
    names = sorted(images_by_label)
    return LabelTable(names, images_by_label, list(mentioned), dict.fromkeys(names, place))


def _read_coco(text: str, place: str, labels: CocoLabels) -> LabelTable:
    try:
        content: Any = json.loads(text)
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        pairs = dict.fromkeys((entry["category_id"], entry["image_id"]) for entry in content["annotations"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{place}: not a COCO instances file ({what}); it holds images, categories and annotations"
        ) from error
    if len(set(names.values())) < len(names):
        raise DataError(f"{place}: two categories have the same name; rename one")
    images_by_label: dict[str, list[str]] = {name: [] for name in names.values()}
    for category, image in pairs:
        if category not in names:
            raise DataError(f"{place}: an annotation has the category {category}, which is not listed")
        images_by_label[names[category]].append(files.get(image, f"image id {image}"))
    listed = list(names.values())
    return LabelTable(listed, images_by_label, list(files.values()), dict.fromkeys(listed, place))


def _text(source: Source, member: str) -> str:
    place = f"{source.path}/{member}"
    try:
        return source.read(member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from error
    except READ_ERRORS as error:
        raise DataError(f"{place}: cannot be read: {error}; copy it here again") from error


def _csv(text: str, place: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{place}:{reader.line_num}: {error}; is a quote left open above?") from error
    if len(rows) < 2:
        raise DataError(f"{place}: holds no rows below its header; it needs a header and a row per image")
    header = [name.strip() for name in rows[0][1]]
    for name, count in Counter(header).items():
        if not name or count > 1:
            problem = f"the column {name!r} twice" if name else "a column without a name"
            raise DataError(f"{place}:1: the header has {problem}; every column needs a name of its own")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{place}:{line}: {len(row)} columns under a header of {len(header)}; correct the row"
            )
    return header, rows[1:]


def _column(header: Sequence[str], name: str | None, default: int, place: str, key: str) -> int:
    if name is None and default < len(header):
        return default
    if name in header:
        return header.index(name)
    wanted = f"no column {name!r}" if name else f"only {len(header)} column"
    raise DataError(
        f"{place}:1: the header has {wanted}, it is {','.join(header)!r}; correct the file or data.{key}"
    )
