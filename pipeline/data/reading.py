"""A data set as it was understood, before any picture is decoded: images, labels, and what was odd. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images, list_images
from pipeline.data.labels import read_labels
from pipeline.data.labels.table import LabelTable, some
from pipeline.data.parts import Part, Sources, labels_of, parts_of
from pipeline.data.references import Finder, ImageRef
from pipeline.data.resolving import Resolved, resolve
from pipeline.errors import DataError
from pipeline.spec import ColumnSpec, ColumnSplit, DataSpec, LabelNames

# N images, K labels


@dataclass
class Problems:
    """What was set aside or may be a mistake, by kind: how many of how many, with an entry for each."""

    undecodable: list[str] = field(default_factory=list)  # "path: reason"
    without_row: list[str] = field(default_factory=list)  # images that the label file does not mention
    unlisted: list[str] = field(default_factory=list)  # entries of an image list that name no image
    unknown: list[str] = field(default_factory=list)  # "file:line: reference" of label files
    constant: list[str] = field(default_factory=list)  # pictures of a single colour; they are packed
    dark: list[str] = field(default_factory=list)  # nearly black pictures; they are packed
    need_range: int = 0  # dark ones of more than 8 bits, packed as if all 16 were used
    images: int = 0  # before anything was set aside
    listed: int = 0  # entries of image lists
    references: int = 0


@dataclass
class DataRead:
    """N images in their order with their labels, and what is to be said of them."""

    images: list[ImageRef]
    sources: list[Path]  # of each image
    splits: list[str]  # of each image: its part of a given split, or "train"
    labels: list[str]
    labels_NK: npt.NDArray[np.uint8]
    problems: Problems
    merge_copies: bool  # equal pictures are one image with the labels of all
    notes: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)  # image files that no name pattern matches
    places: list[int] = field(
        default_factory=list
    )  # of each image among all that were listed, in their order
    left_out: list[tuple[int, str]] = field(
        default_factory=list
    )  # (place, name) of those that are not in the set

    def keep(self, rows: Sequence[int]) -> None:
        """Leave out all images but those of `rows`."""
        kept = set(rows)
        self.left_out += [
            (place, image.name)
            for row, (place, image) in enumerate(zip(self.places, self.images, strict=True))
            if row not in kept
        ]
        self.places = [self.places[row] for row in rows]
        self.images = [self.images[row] for row in rows]
        self.sources = [self.sources[row] for row in rows]
        self.splits = [self.splits[row] for row in rows]
        self.labels_NK = self.labels_NK[list(rows)]


@dataclass
class _PartRead:
    part: Part
    images: Images
    table: LabelTable
    resolved: Resolved


def read_data(data: DataSpec, *, test: bool = False) -> DataRead:
    """List the images and read the labels of a set; nothing is decoded.

    Raises DataError where something is contradictory, or more is unusable than `data.set_aside` allows.
    """
    with Sources() as sources:
        reads = [_read_part(part, data, sources) for part in parts_of(data, test=test)]
        if test and reads[0].part.inherited and reads[0].table.labels:
            _forget_foreign_labels(reads[0], data, sources)
    read = _joined(reads)
    refuse_if_bad(read.problems, data, reads[0].part.key)
    if not test:
        _drop_empty(read, data, reads)
    return read


def _read_part(part: Part, data: DataSpec, sources: Sources) -> _PartRead:
    source = sources(part.source)
    images = list_images(source, part.images, part.image_list, part.key)
    labels = labels_of(part, sources)
    if labels is None:
        return _unlabelled(part, images)
    labels_source = sources(part.labels_source)
    table = read_labels(labels_source, labels, images.chosen, part.key, columns_used(data))
    if labels_source is source:
        table.folder = table.place[len(str(source.path)) + 1 :].rpartition("/")[0]
    return _PartRead(part, images, table, resolve(table, images, source, part.key))


def columns_used(data: DataSpec) -> list[str]:
    """Columns of the label table that the split uses, which are therefore no labels."""
    specs = [data.split if isinstance(data.split, ColumnSplit) else None, data.split.group]
    return [spec.column for spec in specs if isinstance(spec, ColumnSpec) and spec.file is None]


def _unlabelled(part: Part, images: Images) -> _PartRead:
    count = len(images.chosen)
    empty = Resolved(np.zeros((count, 0), np.uint8), np.ones(count, bool), 0)
    return _PartRead(part, images, LabelTable([], str(part.source)), empty)


def _forget_foreign_labels(read: _PartRead, data: DataSpec, sources: Sources) -> None:
    """Labels that `data.test` inherits from another source may name training images of the same names."""
    train = parts_of(data)[0]
    if read.part.labels_source == read.part.source or train.source == read.part.source:
        return
    finder = Finder(list_images(sources(train.source), train.images, train.image_list).matched)
    shared = [ref for ref in dict.fromkeys(read.table.references) if finder.find(ref) >= 0]
    mine = Finder(read.images.chosen)
    shared = [ref for ref in shared if mine.find(ref) >= 0]
    if shared:
        place = read.table.place
        unlabelled = _unlabelled(read.part, read.images)
        read.table, read.resolved = unlabelled.table, unlabelled.resolved
        read.table.notes.append(
            f"no labels: {place} also names training images ({some(shared, 3)}); write data.test.labels"
        )


def _joined(reads: Sequence[_PartRead]) -> DataRead:
    """One set of all parts; the labels are those of the first one."""
    first = reads[0]
    mentioned = {
        (read.part.source, image.member)
        for read in reads
        for image, inside in zip(read.images.chosen, read.resolved.mentioned_N, strict=True)
        if inside
    }
    problems = Problems()
    result = DataRead(
        [], [], [], first.table.labels, np.empty((0, 0), np.uint8), problems, first.table.merge_copies
    )
    matrices = []
    for read in reads:
        images, inside_N, source = read.images.chosen, read.resolved.mentioned_N, read.part.source
        left = [image.member for image, inside in zip(images, inside_N, strict=True) if not inside]
        # an image that the label file of another split mentions is that split's
        problems.without_row += [member for member in left if (source, member) not in mentioned]
        problems.unlisted += read.images.unlisted
        problems.unknown += read.resolved.unknown
        problems.images += int(inside_N.sum())
        problems.listed += len(images) + len(read.images.unlisted)
        problems.references += read.resolved.references
        begin = len(result.places) + len(result.left_out)
        for place, (image, inside) in enumerate(zip(images, inside_N, strict=True), begin):
            if inside:
                result.places.append(place)
            else:
                result.left_out.append((place, image.name))
        chosen = [image for image, inside in zip(images, inside_N, strict=True) if inside]
        result.images += chosen
        result.sources += [source] * len(chosen)
        result.splits += [read.part.split] * len(chosen)
        result.unmatched += read.images.unmatched
        result.notes += [*read.images.notes, *read.table.notes, *read.resolved.notes]
        matrices.append(_columns_of(read, first, inside_N, result.notes))
    problems.images += len(problems.without_row)
    result.labels_NK = np.concatenate(matrices)
    if len(reads) > 1:
        _make_distinct(result)
        taken = {image.member for image in result.images}
        result.unmatched = sorted({member for member in result.unmatched if member not in taken})
    return result


def _columns_of(
    read: _PartRead, first: _PartRead, inside_N: npt.NDArray[np.bool_], notes: list[str]
) -> npt.NDArray[np.uint8]:
    """The labels of a part in the columns of the first part's."""
    labels_NK = read.resolved.labels_NK[inside_N]
    if read.table.labels == first.table.labels:
        return labels_NK
    column = {label: k for k, label in enumerate(read.table.labels)}
    missing = [label for label in first.table.labels if label not in column]
    beyond = [label for label in read.table.labels if label not in first.table.labels]
    if missing:
        notes.append(f"{read.part.key}: no image has {some(missing)}, which {first.part.key} has")
    if beyond:
        notes.append(f"{read.part.key}: {some(beyond)} cannot be learnt from {first.part.key}; left out")
    aligned_NK = np.zeros((len(labels_NK), len(first.table.labels)), np.uint8)
    for k, label in enumerate(first.table.labels):
        if label in column:
            aligned_NK[:, k] = labels_NK[:, column[label]]
    return aligned_NK


def _make_distinct(result: DataRead) -> None:
    """One file in two splits is refused; equal ids of different sources get the split before them."""
    files = Counter(zip(result.sources, (image.member for image in result.images), strict=True))
    twice = [member for (_, member), count in files.items() if count > 1]
    if twice:
        raise DataError(
            f"{result.sources[0]}: {len(twice)} images are in two parts of data.split: {some(twice)}; give each part "
            "its own images or image_list, or labels that name its images only"
        )
    for field_name in ("id", "name"):
        counts = Counter(getattr(image, field_name) for image in result.images)
        if max(counts.values()) > 1:
            result.images = [
                image._replace(**{field_name: f"{split}/{getattr(image, field_name)}"})
                for image, split in zip(result.images, result.splits, strict=True)
            ]


def _drop_empty(read: DataRead, data: DataSpec, reads: Sequence[_PartRead]) -> None:
    """Refuse or drop the labels that no image has, all at once."""
    table = reads[0].table
    empty = [label for k, label in enumerate(read.labels) if not read.labels_NK[:, k].any()]
    if not empty:
        return
    assert isinstance(data.labels, LabelNames)
    if data.labels.empty == "refuse":
        place = table.read_from.get(empty[0], table.place)
        what = (
            f"the label {empty[0]!r}"
            if len(empty) == 1
            else f"{len(empty)} labels: {some(map(repr, empty), 20)}"
        )
        raise DataError(
            f"{place}: no image has {what}; nothing can be learnt from that. Correct the file, or write "
            "data.labels.empty: drop"
        )
    kept = [k for k, label in enumerate(read.labels) if label not in set(empty)]
    if not kept:
        raise DataError(f"{table.place}: no image has any of its {len(empty)} labels")
    read.labels_NK = read.labels_NK[:, kept]
    read.labels = [read.labels[k] for k in kept]
    read.notes.append(f"{len(empty)} labels that no image has are dropped: {some(empty)}")


def refuse_if_bad(problems: Problems, data: DataSpec, key: str) -> None:
    """Raise a DataError where more was set aside than `data.set_aside` allows, each kind by itself."""
    limits = data.set_aside
    images = problems.images
    kinds = (
        (problems.undecodable, images, "images cannot be decoded", "undecodable", limits.undecodable,
         f"mend or remove them, leave them out by {key}.image_list"),
        (problems.without_row, images, "images are not mentioned by the label file", "without_row", limits.without_row,
         f"add rows, choose the others by {key}.images or {key}.image_list"),
        (problems.unlisted, problems.listed, f"entries of {key}.image_list name no image", "unknown_references",
         limits.unknown_references, "correct the list"),
        (problems.unknown, problems.references, "references of the label file name no image", "unknown_references",
         limits.unknown_references, f"correct them, or {key}.images"),
    )  # fmt: skip
    for entries, total, what, limit, allowed, remedy in kinds:
        if len(entries) > allowed * total:
            first = "\n  ".join(entries[:5])
            raise DataError(
                f"{len(entries)} of {total} {what}, more than data.set_aside.{limit} {allowed:g} allows; {remedy}, or "
                f"raise that limit to leave them out. The first:\n  {first}"
            )
