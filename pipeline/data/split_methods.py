"""The methods of `data.split`: which rows are for training, validation and test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from pipeline.data.columns import Cells, SplitColumns
from pipeline.data.labels.table import most_common, some
from pipeline.data.labels.text_table import same_value
from pipeline.data.packed import PackedSet
from pipeline.data.references import AMBIGUOUS, Finder
from pipeline.data.sources import read_list
from pipeline.data.stratify import count_type, part_sizes, stratify
from pipeline.errors import DataError
from pipeline.seeding import seeded
from pipeline.spec import (
    ColumnSplit,
    DataSpec,
    GivenSplit,
    GroupPattern,
    ListSplit,
    OrderedSplit,
    RandomSplit,
    RangeSplit,
    StratifiedSplit,
)

# N images, G groups of them (of one each where there are none), K labels
Rows = npt.NDArray[np.int64]
SPLITS = ("train", "validation", "test")


def divide(data: DataSpec, packed: PackedSet, columns: SplitColumns) -> dict[str, Rows]:
    """The rows of each split. Raises DataError where an image or a group would be in two, or in none that it names."""
    split = data.split
    groups = _groups(data, packed, columns.group)
    if isinstance(split, OrderedSplit | RandomSplit | StratifiedSplit):
        return _by_fractions(split, packed, groups)
    if isinstance(split, ListSplit):
        rows = _by_lists(split, packed, data.set_aside.unknown_references)
    elif isinstance(split, RangeSplit):
        rows = _by_ranges(split, packed)
    elif isinstance(split, ColumnSplit):
        rows = _by_column(split, packed, columns.split, data.set_aside.without_row)
    elif isinstance(split, GivenSplit):
        rows = {name: packed.index.rows_of(name) for name in SPLITS}
    else:
        assert_never(split)
    if groups is not None:
        _refuse_straddling(groups, rows, packed)
    return rows


def _by_fractions(
    split: OrderedSplit | RandomSplit | StratifiedSplit, packed: PackedSet, groups: Sequence[str] | None
) -> dict[str, Rows]:
    """Whole groups, in shares of the images; an image is a group of its own where there are none."""
    shares = (1 - split.validation - split.test, split.validation, split.test)
    group_N = np.arange(len(packed))
    if groups is not None:
        number: dict[str, int] = {}
        group_N = np.array([number.setdefault(group, len(number)) for group in groups], np.int64)
    size_G = np.bincount(group_N)
    if isinstance(split, StratifiedSplit):
        labels_GK = packed.labels_NK
        if groups is not None:
            labels_GK = np.zeros((len(size_G), labels_GK.shape[1]), count_type(size_G))
            np.add.at(labels_GK, group_N, packed.labels_NK)
        part_G = stratify(labels_GK, size_G, shares, seeded(split.seed, "stratified"))
    else:
        order_G = np.arange(len(size_G))
        if isinstance(split, RandomSplit):
            order_G = seeded(split.seed, "random split").permutation(order_G)
        part_G = np.empty(len(size_G), np.int64)
        part_G[order_G] = _parts_in_order(size_G[order_G], shares, grouped=groups is not None)
    part_N = part_G[group_N]
    return {name: np.flatnonzero(part_N == part) for part, name in enumerate(SPLITS)}


def _parts_in_order(size_G: Rows, shares: Sequence[float], *, grouped: bool) -> Rows:
    """The part of each group in its turn: boundaries lie where they are nearest to the asked shares.

    With real groups every part that was asked for gets one, where there are enough.
    """
    ends = np.concatenate([[0], np.cumsum(size_G)])
    edges = np.cumsum(part_sizes(int(ends[-1]), shares))[:-1]
    bounds = [int(np.abs(ends - edge).argmin()) for edge in edges]
    asked = [share > 0 for share in shares]
    if grouped and len(size_G) >= sum(asked):
        bounds[1] = min(bounds[1], len(size_G) - asked[2])
        bounds[0] = max(1, min(bounds[0], bounds[1] - asked[1]))
        bounds[1] = max(bounds[1], bounds[0] + asked[1])
    return np.searchsorted(bounds, np.arange(len(size_G)), side="right").astype(np.int64)


def _groups(data: DataSpec, packed: PackedSet, cells: Cells | None) -> list[str] | None:
    """The group of each image, None where the spec has none; a DataError where an image has none."""
    spec = data.split.group
    if spec is None:
        return None
    if isinstance(spec, GroupPattern):
        found = (re.search(spec.pattern, path) for path in packed.paths)
        groups = [match and (match[1] if match.re.groups else match[0]) for match in found]
        what = f"data.split.group.pattern {spec.pattern!r} finds nothing in"
    else:
        assert cells is not None
        groups = list(cells)
        what = f"column {spec.column!r} of data.split.group has no value for"
    without = [packed.paths[row] for row, group in enumerate(groups) if not group]
    if without:
        raise DataError(f"{packed.path}: {what} {len(without)} of {len(packed)} images: {some(without)}")
    return [group for group in groups if group]


def _refuse_straddling(groups: Sequence[str], rows: Mapping[str, Rows], packed: PackedSet) -> None:
    """A group in two splits would let a network recognise instead of learn."""
    where: dict[str, dict[str, int]] = {}
    for name, chosen in rows.items():
        for row in chosen.tolist():
            where.setdefault(groups[row], {}).setdefault(name, row)
    torn = {group: places for group, places in where.items() if len(places) > 1}
    if torn:
        shown = [
            f"{group}: " + " and ".join(f"{packed.paths[row]} in {name}" for name, row in places.items())
            for group, places in list(torn.items())[:5]
        ]
        raise DataError(
            f"{packed.path}: {len(torn)} groups of data.split.group lie in two splits; move their images into "
            "one, or remove `group`:\n  " + "\n  ".join(shown)
        )


def _by_column(split: ColumnSplit, packed: PackedSet, cells: Cells | None, allowed: float) -> dict[str, Rows]:
    assert cells is not None
    part_of: dict[str, str] = {}
    unknown = Counter[str]()
    for cell, count in Counter(cell for cell in cells if cell is not None).items():
        found = [name for name in SPLITS if any(same_value(cell, value) for value in getattr(split, name))]
        if len(found) == 1:
            part_of[cell] = found[0]
        else:
            unknown[cell] = count
    if unknown:
        raise DataError(
            f"data.split: column {split.column!r} holds {most_common(unknown)}, which is not one of train, "
            f"validation and test; write what it means, e.g. data.split.train: [{next(iter(unknown)) or 'null'}]"
        )
    without = [packed.paths[row] for row, cell in enumerate(cells) if cell is None]
    if len(without) > allowed * len(packed):
        raise DataError(
            f"data.split: the table of column {split.column!r} does not mention {len(without)} of {len(packed)} "
            f"images, more than data.set_aside.without_row {allowed:g} allows: {some(without)}"
        )
    parts = np.array([part_of.get(cell or "", "") if cell is not None else "" for cell in cells])
    return {name: np.flatnonzero(parts == name) for name in SPLITS}


def _by_lists(split: ListSplit, packed: PackedSet, allowed: float) -> dict[str, Rows]:
    finder = Finder(packed.index)
    taken: dict[int, str] = {}
    rows: dict[str, Rows] = {}
    for name in SPLITS:
        path = getattr(split, name)
        references = read_list(Path(path)) if path else []
        found = [(reference, finder.find(reference)) for reference in references]
        unclear = [reference for reference, row in found if row == AMBIGUOUS]
        if unclear:
            raise DataError(f"{path}: {finder.explain(unclear)}")
        unknown = [reference for reference, row in found if row < 0]
        if len(unknown) > allowed * len(references):
            raise DataError(
                f"{path}: {len(unknown)} of {len(references)} entries name no usable image, more than "
                f"data.set_aside.unknown_references {allowed:g} allows; the first: {', '.join(unknown[:5])}"
            )
        for reference, row in found:
            if row >= 0 and taken.setdefault(row, name) != name:
                raise DataError(
                    f"{path}: {reference} is in the list of data.split.{taken[row]} too; keep one"
                )
        rows[name] = np.unique(np.array([row for _, row in found if row >= 0], np.int64))
    return rows


def _by_ranges(split: RangeSplit, packed: PackedSet) -> dict[str, Rows]:
    word = next((i for i in packed.ids if not i.isdecimal()), None)
    if word is not None:
        raise DataError(f"{packed.path}: the id {word!r} is not a number; data.split ranges need numeric ids")
    try:
        id_N: npt.NDArray[Any] = np.fromiter(map(int, packed.ids), np.int64, len(packed))
    except OverflowError:
        id_N = np.array([int(i) for i in packed.ids], object)  # ids may be longer than 64 bits
    member_of: dict[str, npt.NDArray[np.bool_]] = {}
    for name in SPLITS:
        member_N = np.zeros(len(id_N), bool)
        text = getattr(split, name)
        for part in text.split(",") if text else ():
            first, last = (int(end) for end in part.split("-"))
            member_N |= ((id_N >= first) & (id_N <= last)).astype(bool)
        for other, others_N in member_of.items():
            both = id_N[member_N & others_N]
            if len(both):
                raise DataError(
                    f"data.split: {len(both)} images are in {other} and in {name}, e.g. id {both[0]}; "
                    "make the ranges disjoint"
                )
        member_of[name] = member_N
    return {name: np.flatnonzero(member_N) for name, member_N in member_of.items()}
