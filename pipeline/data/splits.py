"""Which rows are for training, validation and test: decided once, seeded, stored beside the packed set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.columns import SplitColumns
from pipeline.data.index import last_equal
from pipeline.data.packed import PackedSet
from pipeline.data.split_methods import SPLITS, Rows, divide
from pipeline.data.summary import split_lines
from pipeline.errors import DataError
from pipeline.seeding import seeded
from pipeline.spec import ColumnSplit, DataSpec
from pipeline.storage.files import read_json, write_json
from pipeline.storage.typed import typed

# N images, K labels


@dataclass(frozen=True)
class Split:
    """Rows of the packed set for each use, in image order, and the images left out, by reason."""

    train: Rows
    validation: Rows
    test: Rows
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> names
    labels_without: dict[str, list[str]] = field(
        default_factory=dict
    )  # split -> labels that no image of it has

    def summary(self) -> str:
        """One line for the log, and one per reason why images were left out."""
        sizes = {name: len(getattr(self, name)) for name in SPLITS}
        return split_lines(sizes, self.left_out, self.labels_without)


def make_split(data: DataSpec, packed: PackedSet, columns: SplitColumns | None = None) -> Split:
    """Divide the rows of a packed set as the spec says; `columns` is what tables say of its images.

    An exact duplicate (equal pixels) of a validation or test image leaves training. Raises DataError
    where training or validation would be empty, an image would be in two splits, or more than
    `set_aside.unknown_references` of a list names unknown images.
    """
    rows = divide(data, packed, columns or SplitColumns())
    left_out: dict[str, list[str]] = {}

    def leave_out(split: str, out_N: npt.NDArray[np.bool_], reason: str) -> None:
        if out_N.any():
            left_out[reason] = list(packed.names.take(rows[split][out_N]))
            rows[split] = rows[split][~out_N]

    unused_N = np.ones(len(packed), bool)
    unused_N[np.concatenate(list(rows.values()))] = False
    others = np.flatnonzero(unused_N)
    if len(others):
        left_out["in no split"] = list(packed.names.take(others))
    digests_ND, held_out = packed.index.pixel_digests, np.concatenate([rows[name] for name in SPLITS[1:]])
    duplicate_N = last_equal(digests_ND[rows["train"]], digests_ND[held_out]) >= 0
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
    named = not isinstance(data.split, ColumnSplit) and getattr(data.split, "test", None)
    asked = SPLITS if named else SPLITS[:2]
    for name in asked:
        if len(rows[name]) == 0:
            remedy = "correct data.split" + (" or data.negatives" if negative_N.any() else "")
            raise DataError(f"{packed.path}: no image is left for {name} of {len(packed)}; {remedy}")
    without = {
        name: [
            label
            for label, count in zip(packed.labels, packed.labels_NK[rows[name]].sum(axis=0), strict=True)
            if not count
        ]
        for name in SPLITS[:2]
    }
    labels_without = {name: labels for name, labels in without.items() if labels}
    return Split(rows["train"], rows["validation"], rows["test"], left_out, labels_without)


def write_split(path: Path, split: Split, packed: PackedSet) -> None:
    """Store a split with the label counts of each part (`counts`)."""
    counts: dict[str, Any] = {}
    for name in SPLITS:
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
    rows_of = {name: getattr(split, name).tolist() for name in SPLITS}
    stored = {"packed": packed.digest, "rows": rows_of, "counts": counts, "left_out": split.left_out}
    write_json(path, stored | {"labels_without": split.labels_without})


def read_split(path: Path) -> Split:
    """The split stored at `path`; a DataError names it where it is missing or damaged."""
    try:
        stored = read_json(path)
        train, validation, test = (np.array(stored["rows"][name], np.int64) for name in SPLITS)
        return Split(train, validation, test, stored["left_out"], stored.get("labels_without", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: the split cannot be read ({error}); delete it and run `{typed('wrangle')}`"
        ) from error
