"""Pictures of `data.test` that training or validation has too: equal pixels, or before packing equal files.

Torch-free, since plans ask for it, and without numpy unless pixels are compared. What was found lies beside
the packed test set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.contents import FileMark, read_contents
from pipeline.data.layout import read_dataset
from pipeline.errors import DataError, PipelineError
from pipeline.spec import (
    DataSpec,
    FolderLabels,
    IdListLabels,
    OrderedSplit,
    RandomSplit,
    StratifiedSplit,
    TestSpec,
)
from pipeline.spec.identity import digest
from pipeline.storage.files import read_json, read_json_or_empty, write_json
from pipeline.storage.typed import typed

if TYPE_CHECKING:
    from pipeline.data.index import Index

SHOWN = 5  # pairs that a message names
_USES = {"train": "training", "validation": "validation"}


@dataclass(frozen=True)
class Overlap:
    """Test images that are also among others: how many of how many, and the first pairs.

    A pair is the test image's name, the other's name, and the other's use ("" where that is not known yet).
    """

    count: int
    of: int
    pairs: tuple[tuple[str, str, str], ...]

    def named(self, data: DataSpec) -> str:
        """The first pairs with their sources, a line each."""
        assert data.test is not None
        source, test_source = Path(data.source), Path(data.test.source)
        same = source.name == test_source.name  # then the folders tell them apart
        names = (str(path) if same else path.name for path in (test_source, source))
        place, other_place = names
        lines = [
            f"  {place}: {test} equals {other_place}: {other}" + (f" ({use})" if use else "")
            for test, other, use in self.pairs
        ]
        rest = self.count - len(self.pairs)
        return "\n".join([*lines, *([f"  and {rest:,} more"] if rest else [])])

    def short(self) -> str:
        """In one line, for beside a score."""
        pairs = ", ".join(f"{test} = {other}" for test, other, _ in self.pairs)
        rest = ", ..." if self.count > len(self.pairs) else ""
        return f"{self.count:,} of {self.of:,} test images are in training or validation too: {pairs}{rest}"


# ---------------------------------------------------------------- once packed


def find_overlap(packed: Path, split: Path, test: Path) -> Overlap:
    """By the pixels of packed sets and the rows of a split; raises DataError where a file cannot be read."""
    datasets = [read_dataset(packed), read_dataset(test)]
    made_of = digest([*(found and found["digest"] for found in datasets), split.name])
    path = test / f"overlap-{made_of[:16]}.json"
    known = read_json_or_empty(path)
    if known.get("made_of") != made_of:
        found = _compare(packed, split, test)
        known = {"made_of": made_of, "count": found.count, "of": found.of, "pairs": found.pairs}
        with contextlib.suppress(PipelineError):  # a set that cannot be written to is compared each time
            write_json(path, known)
    pairs = tuple((test, other, use) for test, other, use in known["pairs"])
    return Overlap(known["count"], known["of"], pairs)


def _compare(packed: Path, split: Path, test: Path) -> Overlap:
    from pipeline.data.index import last_equal  # which imports numpy

    try:
        rows = read_json(split)["rows"]
        ours, tests = _index(packed), _index(test)
        used = [row for part in _USES for row in rows[part]]
        other_N = last_equal(tests.pixel_digests, ours.pixel_digests[used])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{test}: cannot be compared with {split} ({error}); delete what is damaged and run `{typed('wrangle')}`"
        ) from error
    found = (other_N >= 0).nonzero()[0]
    pairs = []
    for row, other in zip(found[:SHOWN].tolist(), other_N[found[:SHOWN]].tolist(), strict=True):
        use = _USES["train" if other < len(rows["train"]) else "validation"]
        pairs.append((tests.names[row], ours.names[used[other]], use))
    return Overlap(len(found), len(other_N), tuple(pairs))


def _index(packed: Path) -> Index:
    from pipeline.data.packed import PackedSet  # which imports numpy

    return PackedSet.open(packed, verify=False).index


# ---------------------------------------------------------------- before


def find_equal_files(digests: Path, packed_digest: str, test_digest: str) -> Overlap | None:
    """By size and CRC-32 of the files of two sets, packed or not; None where they are not on record."""
    key = digest(["equal files", packed_digest, test_digest])
    path = digests / f"equal-{key[:32]}.json"
    known = read_json_or_empty(path)
    if known.get("key") != key:
        ours, tests = read_contents(digests, packed_digest), read_contents(digests, test_digest)
        if ours is None or tests is None or ours.images is None or tests.images is None:
            return None
        found = _equal_files(ours.images, tests.images)
        known = {"key": key, "count": found.count, "of": found.of, "pairs": found.pairs}
        with contextlib.suppress(PipelineError):
            write_json(path, known)
    return Overlap(
        known["count"], known["of"], tuple((test, other, use) for test, other, use in known["pairs"])
    )


def _equal_files(ours: Mapping[str, FileMark], tests: Mapping[str, FileMark]) -> Overlap:
    seen = {(mark.size, mark.crc): mark.name for mark in ours.values() if mark.readable}
    others = ((mark.name, seen.get((mark.size, mark.crc))) for mark in tests.values() if mark.readable)
    pairs = [(name, other, "") for name, other in others if other is not None]
    return Overlap(len(pairs), len(tests), tuple(pairs[:SHOWN]))


def uses_every_image(data: DataSpec) -> bool:
    """Whether each image of `data.source` is surely for training or validation, as far as a spec can tell.

    Tables may leave images out that they do not mention, and so do lists, ranges and columns of a split.
    """
    divides = isinstance(data.split, OrderedSplit | RandomSplit | StratifiedSplit) and not data.split.test
    keeps = data.negatives.train == "keep" and data.negatives.validation == "keep"
    return divides and keeps and isinstance(data.labels, IdListLabels | FolderLabels)


# ---------------------------------------------------------------- what to say


def judge(data: DataSpec, overlap: Overlap) -> str | None:
    """What to say of test images that training has: None for none; raises DataError unless they are allowed."""
    if not overlap.count:
        return None
    test: Any = data.test
    assert isinstance(test, TestSpec)
    text = (
        f"data.test: {overlap.count:,} of its {overlap.of:,} images are also in training or validation\n"
        f"{overlap.named(data)}"
    )
    if test.overlap == "allow":
        return f"{text}\n  data.test.overlap: allow keeps them; they are named beside every test score"
    raise DataError(
        f"{text}\n  A score on them says little. Remove them from one of the two, or write "
        "`data.test.overlap: allow`: they are then named beside every test score"
    )
