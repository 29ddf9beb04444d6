"""From references to images: the labels of each image, and what named none or contradicts itself. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images, is_image
from pipeline.data.labels.table import LabelTable, some
from pipeline.data.references import AMBIGUOUS, UNKNOWN, Finder, ImageRef, plain
from pipeline.data.sources import Source
from pipeline.errors import DataError

# N images, K labels, R references of a label file
_SHOWN = 5


@dataclass(frozen=True)
class Resolved:
    """The labels of N images, and which of them the label file mentions."""

    labels_NK: npt.NDArray[np.uint8]
    mentioned_N: npt.NDArray[np.bool_]
    references: int  # distinct ones
    unknown: list[str] = field(default_factory=list)  # "file:line: reference" that names no image
    notes: list[str] = field(default_factory=list)


def resolve(table: LabelTable, images: Images, source: Source, key: str) -> Resolved:
    """Find the image of every reference of `table`; `source` is where the images are.

    Raises DataError where a reference could mean two images, where two rows say different things of one
    image, where the first line of a table is a row, or where nothing is found.
    """
    finder = Finder(images.chosen)
    refs = table.references
    row_R = np.fromiter((finder.find(ref, table.folder) for ref in refs), np.int64, len(refs))
    if (row_R == AMBIGUOUS).any():
        unclear = [refs[i] for i in np.flatnonzero(row_R == AMBIGUOUS)]
        raise DataError(f"{table.place}: {finder.explain(unclear)}")
    if table.header is not None and finder.names_one(plain(table.header)):
        raise DataError(
            f"{table.place}:1: the header names the image {table.header!r}, so it is a row; write "
            f"{key}.labels.header: false, or the names of the columns as a list"
        )
    unknown_R = row_R == UNKNOWN
    if unknown_R.all():
        raise DataError(_none_found(table, images, key))
    notes = []
    if unknown_R.any():
        notes += _set_apart_others(table, images, source, unknown_R)
    if table.one_row_an_image:
        notes += _merge_equal_rows(table, images.chosen, row_R)
    if len(finder.folders_beyond) > 1:
        folders = some(sorted(finder.folders_beyond))
        notes.append(f"references name folders that the source lacks, which are taken for one: {folders}")
    labels_NK = np.zeros((len(images.chosen), len(table.labels)), np.uint8)
    pair_row_P = row_R[np.frombuffer(table.row_P, np.int64)] if len(table.row_P) else np.empty(0, np.int64)
    label_P = np.frombuffer(table.label_P, np.int64) if len(table.label_P) else pair_row_P
    found_P = pair_row_P >= 0
    labels_NK[pair_row_P[found_P], label_P[found_P]] = 1
    mentioned_N = np.full(len(images.chosen), table.lists_all_labels)
    mentioned_N[row_R[row_R >= 0]] = True
    unknown = dict.fromkeys(refs[i] for i in np.flatnonzero(unknown_R))
    places = _places(table, np.flatnonzero(unknown_R))
    return Resolved(labels_NK, mentioned_N, len(set(refs)), [f"{places[r]}: {r}" for r in unknown], notes)


def _places(table: LabelTable, rows: npt.NDArray[np.int64]) -> dict[str, str]:
    """Reference -> file and line, or file of the label that it has."""
    places: dict[str, str] = {}
    label_of = {}
    if table.read_from:
        wanted = set(rows.tolist())
        label_of = {row: k for row, k in zip(table.row_P, table.label_P, strict=True) if row in wanted}
    for row in rows.tolist():
        place = table.file_of(label_of[row]) if row in label_of else table.place_of(row)
        places.setdefault(table.references[row], place)
    return places


def _none_found(table: LabelTable, images: Images, key: str) -> str:
    first = images.chosen[0]
    return (
        f"{table.place}: names none of the images: it has {table.references[0]!r}, images are called {first.id!r} "
        f"({first.member}); correct {key}.images, {key}.labels or the ids"
        if table.references
        else f"{table.place}: names no image at all"
    )


def _set_apart_others(
    table: LabelTable, images: Images, source: Source, unknown_R: npt.NDArray[np.bool_]
) -> list[str]:
    """References to images of the source that the spec does not choose are not unknown; changes `unknown_R`."""
    others = [ImageRef(member, member, member) for member in source.members if is_image(member)]
    others += [image for image in images.matched if not is_image(image.member)]
    finder = Finder([*others, *images.matched])
    apart = [
        i for i in np.flatnonzero(unknown_R) if finder.find(table.references[i], table.folder) != UNKNOWN
    ]
    unknown_R[apart] = False
    if not apart:
        return []
    distinct = dict.fromkeys(table.references[i] for i in apart)
    return [f"{len(distinct)} references name images that are not chosen: {some(distinct, 3)}"]


def _merge_equal_rows(
    table: LabelTable, images: Sequence[ImageRef], row_R: npt.NDArray[np.int64]
) -> list[str]:
    """A note of rows that repeat another; a DataError names all that say something else of an image."""
    found_R = np.flatnonzero(row_R >= 0)
    order = found_R[np.argsort(row_R[found_R], kind="stable")]
    repeats = order[1:][row_R[order[1:]] == row_R[order[:-1]]]
    if not len(repeats):
        return []
    of_image: dict[int, list[int]] = {}
    twice = set(row_R[repeats].tolist())
    for i in order.tolist():
        if int(row_R[i]) in twice:
            of_image.setdefault(int(row_R[i]), []).append(i)
    labels: dict[int, set[int]] = {i: set() for rows in of_image.values() for i in rows}
    for row, label in zip(table.row_P, table.label_P, strict=True):
        if row in labels:
            labels[row].add(label)
    different = [rows for rows in of_image.values() if any(labels[i] != labels[rows[0]] for i in rows)]
    if different:
        lines = []
        for rows in different[:_SHOWN]:
            said = " and ".join(f"{table.place_of(i)} ({_row(table, i, labels[i])})" for i in rows[:3])
            lines.append(f"{images[row_R[rows[0]]].member}: {said}")
        raise DataError(
            f"{table.place}: {len(different)} images have rows that differ; keep one row for each:\n  "
            + "\n  ".join(lines)
        )
    return [f"{len(repeats)} rows repeat another row of the same image and are merged"]


def _row(table: LabelTable, row: int, labels: set[int]) -> str:
    return f"{table.references[row]}: {some(table.labels[k] for k in sorted(labels)) or 'no label'}"
