"""Which rows are for training, validation and test: decided once, seeded, stored beside the packed set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from pipeline.data.packed import PackedSet
from pipeline.data.references import Finder, ImageRef
from pipeline.data.sources import read_list
from pipeline.errors import DataError
from pipeline.seeding import seeded
from pipeline.spec import (
    ColumnSplit,
    DataSpec,
    GivenSplit,
    ListSplit,
    OrderedSplit,
    RandomSplit,
    RangeSplit,
    StratifiedSplit,
)
from pipeline.storage.files import read_json, write_json

# N images, K labels, S splits
Rows = npt.NDArray[np.int64]
_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Rows of the packed set for each use, in image order, and the images left out, by reason."""

    train: Rows
    validation: Rows
    test: Rows
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> names

    def summary(self) -> str:
        """One line for the log, and one per reason why images were left out."""
        parts = [f"{name} {len(getattr(self, name))}" for name in _NAMES if len(getattr(self, name))]
        lines = ["split: " + ", ".join(parts)]
        for reason, names in self.left_out.items():
            lines.append(f"  {len(names)} left out: {reason}, e.g. {names[0]}")
        return "\n".join(lines)


def make_split(data: DataSpec, packed: PackedSet) -> Split:
    """Divide the rows of a packed set as the spec says.

    An exact duplicate (equal pixels) of a validation or test image leaves training. Raises DataError
    where training or validation would be empty, an image would be in two splits, or more than
    `set_aside.unknown_references` of a list names unknown images.
    """
    rows = _divide(data, packed)
    left_out: dict[str, list[str]] = {}

    def leave_out(split: str, out_N: npt.NDArray[np.bool_], reason: str) -> None:
        if out_N.any():
            left_out[reason] = [packed.names[row] for row in rows[split][out_N]]
            rows[split] = rows[split][~out_N]

    used = np.concatenate(list(rows.values()))
    others = np.setdiff1d(np.arange(len(packed)), used)
    if len(others):
        left_out["in no split"] = [packed.names[row] for row in others]
    held_out = {packed.pixel_digests[row] for name in _NAMES[1:] for row in rows[name]}
    duplicate_N = np.array([packed.pixel_digests[row] in held_out for row in rows["train"]], bool)
    leave_out("train", duplicate_N, "copies in training of validation or test images")
    negative_N = packed.labels_NK.sum(axis=1) == 0
    policy = data.negatives
    if policy.train != "keep":
        negative_rows = np.flatnonzero(negative_N[rows["train"]])
        keep = 0 if policy.train == "drop" else round(policy.train * len(negative_rows))
        # the tag names a stream of draws: another one would draw other images
        kept = seeded(policy.seed, "unlabelled").permutation(negative_rows)[:keep]
        out_N = negative_N[rows["train"]].copy()
        out_N[kept] = False
        leave_out("train", out_N, "negative training images (data.negatives.train)")
    if policy.validation == "drop":
        out_N = negative_N[rows["validation"]]
        leave_out("validation", out_N, "negative validation images (data.negatives.validation)")
    asked = _NAMES if getattr(data.split, "test", None) else _NAMES[:2]
    for name in asked:
        if len(rows[name]) == 0:
            remedy = "correct data.split" + (" or data.negatives" if negative_N.any() else "")
            raise DataError(f"{packed.path}: no image is left for {name} of {len(packed)}; {remedy}")
    return Split(rows["train"], rows["validation"], rows["test"], left_out)


def write_split(path: Path, split: Split, packed: PackedSet) -> None:
    """Store a split with the label counts of each part (`counts`)."""
    counts: dict[str, Any] = {}
    for name in _NAMES:
        rows = getattr(split, name)
        labels_NK = packed.labels_NK[rows]
        if len(rows):
            counts[name] = {
                "images": len(rows),
                "negative": int((labels_NK.sum(axis=1) == 0).sum()),
                "labels": dict(
                    zip(packed.labels, labels_NK.sum(axis=0, dtype=np.int64).tolist(), strict=True)
                ),
            }
    rows_of = {name: getattr(split, name).tolist() for name in _NAMES}
    write_json(path, {"packed": packed.digest, "rows": rows_of, "counts": counts, "left_out": split.left_out})


def read_split(path: Path) -> Split:
    """The split stored at `path`; a DataError names it where it is missing or damaged."""
    try:
        stored = read_json(path)
        train, validation, test = (np.array(stored["rows"][name], np.int64) for name in _NAMES)
        return Split(train, validation, test, stored["left_out"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: the split cannot be read ({error}); delete it and run `make wrangle`"
        ) from error


# ---------------------------------------------------------------- the methods


def _divide(data: DataSpec, packed: PackedSet) -> dict[str, Rows]:
    split = data.split
    if isinstance(split, ListSplit):
        return _by_lists(split, packed, data.set_aside.unknown_references)
    if isinstance(split, RangeSplit):
        return _by_ranges(split, packed)
    shares = (1 - split.validation - split.test, split.validation, split.test)
    if isinstance(split, StratifiedSplit):
        part_N = stratify(packed.labels_NK, shares, seeded(split.seed, "stratified"))
        return {name: np.flatnonzero(part_N == part) for part, name in enumerate(_NAMES)}
    order = np.arange(len(packed))
    if isinstance(split, GivenSplit | ColumnSplit):
        raise NotImplementedError
    if isinstance(split, RandomSplit):
        order = seeded(split.seed, "random split").permutation(order)
    elif not isinstance(split, OrderedSplit):
        assert_never(split)
    edges = np.rint(np.cumsum(shares) * len(packed)).astype(int)[:2]
    return {name: np.sort(rows) for name, rows in zip(_NAMES, np.split(order, edges), strict=True)}


def stratify(
    labels_NK: npt.NDArray[np.uint8], shares: Sequence[float], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The part (0 .. len(shares) - 1) of each image, every part with its share of every label: (N,).

    Iterative stratification: the label with the fewest images left is assigned first, each image to
    the part that lacks that label most (K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the Stratification
    of Multi-Label Data", ECML PKDD 2011). Negative images are assigned last, as one more label.
    """
    images = len(labels_NK)
    negative_N1 = (labels_NK.sum(axis=1, keepdims=True) == 0).astype(np.uint8)
    labels_NK = np.hstack([labels_NK, negative_N1])
    share_S = np.asarray(shares, float)
    wanted_SK = share_S[:, None] * labels_NK.sum(axis=0)[None]  # still lacking, by part and label
    room_S = share_S * images
    part_N = np.full(images, -1, np.int64)
    order = rng.permutation(images)
    left_K = labels_NK.sum(axis=0).astype(np.int64)
    while left_K.any():
        label = int(np.where(left_K > 0, left_K, images + 1).argmin())
        for row in order[(labels_NK[order, label] == 1) & (part_N[order] < 0)]:
            # the part that lacks this label most, then the one that lacks most images, then at random
            best = max(range(len(share_S)), key=lambda s: (wanted_SK[s, label], room_S[s], rng.random()))
            part_N[row] = best
            wanted_SK[best] -= labels_NK[row]
            room_S[best] -= 1
            left_K -= labels_NK[row]
    return part_N


def _by_lists(split: ListSplit, packed: PackedSet, allowed: float) -> dict[str, Rows]:
    finder = Finder([ImageRef(*image) for image in zip(packed.ids, packed.names, packed.paths, strict=True)])
    taken: dict[int, str] = {}
    rows: dict[str, Rows] = {}
    for name in _NAMES:
        path = getattr(split, name)
        references = read_list(Path(path)) if path else []
        found = [(reference, finder.find(reference)) for reference in references]
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
    words = [i for i in packed.ids if not i.isdecimal()]
    if words:
        raise DataError(
            f"{packed.path}: the id {words[0]!r} is not a number; data.split ranges need numeric ids"
        )
    id_N = np.array([int(i) for i in packed.ids], object)  # ids may be longer than 64 bits
    member_of: dict[str, npt.NDArray[np.bool_]] = {}
    for name in _NAMES:
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
