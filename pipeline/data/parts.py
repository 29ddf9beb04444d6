"""Where the images of a set come from: one source, or one for each split. Torch- and numpy-free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.labels import label_members
from pipeline.data.sources import Source, open_source
from pipeline.errors import DataError
from pipeline.spec import (
    ColumnSpec,
    ColumnSplit,
    DataSpec,
    FolderLabels,
    GivenSplit,
    LabelsSpec,
    TableLabels,
)


@dataclass(frozen=True)
class Part:
    """Some images of a set with their labels, and the section of the spec that describes them."""

    split: str  # "train", "validation" or "test" of a given split; "train" of all others
    key: str
    source: Path
    images: str
    image_list: str | None
    labels: LabelsSpec | None
    labels_source: Path
    inherited: bool = False  # labels that `data.test` does not name itself, and that may not be there


class Sources(contextlib.ExitStack):
    """Opens each folder or archive once, and closes all of them."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Path, Source] = {}

    def __call__(self, path: Path) -> Source:
        """The opened source; raises DataError where it is missing or damaged."""
        if path not in self._open:
            self._open[path] = self.enter_context(contextlib.closing(open_source(path)))
        return self._open[path]

    def opened(self, path: Path) -> Source | None:
        """The source where it has been opened."""
        return self._open.get(path)


def parts_of(data: DataSpec, *, test: bool = False) -> list[Part]:
    """The parts of the set that `data` describes, or of its `data.test`."""
    if test:
        return [_test_part(data)]
    parts = [_part("train", "data", Path(data.source), data.images, data.image_list, data.labels)]
    if isinstance(data.split, GivenSplit):
        for name in ("validation", "test"):
            given = getattr(data.split, name)
            if given is not None:
                source = Path(given.source or data.source)
                labels = given.labels or data.labels
                images = given.images or data.images
                parts.append(_part(name, f"data.split.{name}", source, images, given.image_list, labels))
    return parts


def labels_of(part: Part, sources: Sources) -> LabelsSpec | None:
    """The part's labels; None where it has none, or inherits some that are not there."""
    if part.labels is None or not part.inherited:
        return part.labels
    try:
        label_members(sources(part.labels_source), part.labels)
    except DataError:
        return None
    return part.labels


def _test_part(data: DataSpec) -> Part:
    test = data.test
    assert test is not None
    named = test.labels
    labels = None if named == "none" else named or data.labels
    assert not isinstance(labels, str)
    part = _part("train", "data.test", Path(test.source), test.images or data.images, test.image_list, labels)
    return Part(**vars(part) | {"inherited": named is None})


def _part(
    split: str, key: str, source: Path, images: str, image_list: str | None, labels: LabelsSpec | None
) -> Part:
    own = None if labels is None or isinstance(labels, FolderLabels) else labels.source
    return Part(split, key, source, images, image_list, labels, Path(own) if own else source)


def column_specs(data: DataSpec) -> dict[str, ColumnSpec]:
    """The columns that a split needs, by their key in the spec."""
    split = {"data.split": data.split} if isinstance(data.split, ColumnSplit) else {}
    group = {"data.split.group": data.split.group} if isinstance(data.split.group, ColumnSpec) else {}
    return {**split, **group}


def table_of(data: DataSpec, column: ColumnSpec, key: str) -> tuple[Path, str]:
    """(source, file) of the table that holds a column; a DataError where neither it nor the labels name one."""
    part = parts_of(data)[0]
    source = Path(column.source) if column.source else part.labels_source
    if column.file is not None:
        return source, column.file
    if not isinstance(data.labels, TableLabels):
        raise DataError(
            f"{key}.file: the labels are no table with a column {column.column!r}; write the table's name"
        )
    return source, data.labels.file


def settings_of(parts: list[Part]) -> Iterator[list[object]]:
    """What of the parts decides which files are looked at, for the key of remembered digests."""
    for part in parts:
        labels = part.labels.model_dump(mode="json", by_alias=True) if part.labels else None
        yield [part.split, part.images, labels, part.inherited]


def tables_of(data: DataSpec) -> dict[str, tuple[Path, str]]:
    """(source, file) of the tables of columns that are not the labels' own, by their key in the spec."""
    return {
        key: table_of(data, column, key)
        for key, column in column_specs(data).items()
        if column.file is not None
    }
