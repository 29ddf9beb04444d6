"""Read labels from the files people have: which images have which label. Torch- and numpy-free.

A format is a section in `pipeline/spec/labels.py`, a reader here that gives a `LabelTable`, and a case
in `_read`. What references mean is decided later, by `pipeline/data/references.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from pipeline.data.labels.folders import read_folders
from pipeline.data.labels.id_files import read_id_lists, read_vectors, read_voc
from pipeline.data.labels.json_files import read_coco, read_jsonl
from pipeline.data.labels.listed import read_listed
from pipeline.data.labels.names import choose_labels
from pipeline.data.labels.onehot import read_celeba, read_onehot
from pipeline.data.labels.table import LabelTable, read_lines, read_text
from pipeline.data.references import ImageRef
from pipeline.data.sources import Source, match_members
from pipeline.errors import DataError
from pipeline.spec import (
    CelebaLabels,
    CocoLabels,
    FolderLabels,
    IdListLabels,
    JsonLinesLabels,
    LabelsSpec,
    ListColumnLabels,
    OneHotLabels,
    VectorLabels,
    VocLabels,
)

MAX_LABELS = 5_000  # labels are held densely
_TOO_MANY = f"more than {MAX_LABELS}"


def label_members(source: Source, labels: LabelsSpec, key: str = "data") -> list[tuple[str, str]]:
    """(label, member) of the files that hold the labels; ("", member) where a file holds all.

    Raises DataError where there are none. `key` is the section of the spec that messages name.
    """
    if isinstance(labels, FolderLabels):
        return []
    if isinstance(labels, IdListLabels | VectorLabels | VocLabels):
        found = sorted(match_members(source.members, labels.files, "label"))
        if isinstance(labels, VectorLabels):
            order = find_file(source, labels.order, f"{key}.labels.order")
            found = [("", order), *(pair for pair in found if pair[1] != order)]
        if found[-1:] and found[-1][0]:
            return found
        raise DataError(_no_file(source, labels.files, f"{key}.labels"))
    return [("", find_file(source, labels.file, f"{key}.labels"))]


def find_file(source: Source, wanted: str, key: str) -> str:
    """The one member that is called `wanted`, or whose path ends so; a DataError where there is none, or two."""
    found = [m for m in source.members if m == wanted or m.endswith("/" + wanted)]
    if not found:
        raise DataError(_no_file(source, wanted, key))
    if len(found) > 1 and wanted not in found:
        both = " and ".join(found[:2])
        raise DataError(f"{source.path}: {both} are both {wanted!r}; name its folder too")
    return wanted if wanted in found else found[0]


def read_labels(
    source: Source,
    labels: LabelsSpec,
    images: Sequence[ImageRef],
    key: str = "data",
    besides: Sequence[str] = (),
) -> LabelTable:
    """The labels of `source` in the spec's format; a DataError names the file, line and value at fault.

    `images` are those of the same section; `besides` names columns that are used otherwise.
    """
    members = label_members(source, labels, key)
    place = f"{source.path}/{members[0][1]}" if members else str(source.path)
    if len(members) > MAX_LABELS:
        raise DataError(f"{place}: is one of {len(members)} label files, {_TOO_MANY}")
    table = _read(source, labels, members, place, besides) if members else None
    if isinstance(labels, FolderLabels):
        table = read_folders(images, place, labels)
    assert table is not None
    if not 0 < len(table.labels) <= MAX_LABELS:
        problem = f"{len(table.labels)} labels, {_TOO_MANY}" if table.labels else "no label at all"
        raise DataError(f"{place}: holds {problem}; check that {key}.labels describes its format")
    return choose_labels(table, labels)


def _read(
    source: Source, labels: LabelsSpec, members: Sequence[tuple[str, str]], place: str, besides: Sequence[str]
) -> LabelTable:
    if isinstance(labels, IdListLabels):
        return read_id_lists(source, members)
    if isinstance(labels, VectorLabels):
        return read_vectors(source, members[1:], members[0][1], labels)
    if isinstance(labels, VocLabels):
        return read_voc(source, members, labels)
    assert not isinstance(labels, FolderLabels)
    if isinstance(labels, OneHotLabels):
        return read_onehot(read_lines(source, members[0][1]), place, labels, besides)
    if isinstance(labels, ListColumnLabels):
        return read_listed(read_lines(source, members[0][1]), place, labels)
    text = read_text(source, members[0][1])
    if isinstance(labels, JsonLinesLabels):
        return read_jsonl(text, place, labels)
    if isinstance(labels, CocoLabels):
        return read_coco(text, place)
    if isinstance(labels, CelebaLabels):
        return read_celeba(text, place)
    assert_never(labels)


def _no_file(source: Source, wanted: str, key: str) -> str:
    if wanted.startswith(("/", "..")):
        return (
            f"{source.path}: {wanted!r} is looked for inside it; write the file's folder as "
            f"{key.removesuffix('.order')}.source, "
            "and its name here"
        )
    name = wanted.rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    alike = [member for member in source.members if member.endswith("." + name)]
    hint = f"; it holds {', '.join(alike[:3])}" if alike else ""
    return (
        f"{source.path}: no label file is named {wanted!r}{hint}; correct {key}, or name another folder or archive as "
        f"{key.removesuffix('.order')}.source"
    )
