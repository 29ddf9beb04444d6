"""The report of wrangle: counts and examples of every problem, label statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.index import Index, equal_groups
from pipeline.data.reading import DataRead, read_data
from pipeline.data.summary import summary
from pipeline.spec import DataSpec

# N images, K labels
_SHOWN = 50  # examples of each kind of problem
_PAIRED = 1_000  # labels whose pairs are counted: more cost minutes, and megabytes of the report
_ROWS = 1 << 16  # of labels at a time as float32


def build_report(read: DataRead, index: Index | None = None) -> dict[str, Any]:
    """What is known of a set of N images: problems, label counts, label pairs, exact duplicates.

    Without its `index` nothing was decoded yet, and duplicates are not known. Label pairs are None above
    1,000 labels, which a note says.
    """
    duplicates = equal_groups(index.pixel_digests) if index else []
    examples = [[read.images[row].name for row in rows] for rows in duplicates[:_SHOWN]]
    labels_NK, problems = read.labels_NK, read.problems
    pairs = None
    if len(read.labels) <= _PAIRED:
        pairs = dict(zip(read.labels, _together(labels_NK).tolist(), strict=True))
    elif index:
        read.notes.append(f"label pairs are not counted: {len(read.labels):,} labels, more than {_PAIRED:,}")
    return {
        "images": problems.images,
        "packed": len(read.images),
        "undecodable": _listed(problems.undecodable),
        "without_row": _listed(problems.without_row),
        "left_out": sorted(read.left_out),
        "unlisted": _listed(problems.unlisted),
        "unknown_references": _listed(problems.unknown),
        "unmatched_files": _listed(read.unmatched),
        "notes": read.notes,
        "constant": _listed(problems.constant),
        "dark": _listed(problems.dark) | {"need_range": problems.need_range},
        "exact_duplicates": {"groups": len(duplicates), "examples": examples},
        "label_counts": dict(zip(read.labels, labels_NK.sum(axis=0, dtype=np.int64).tolist(), strict=True)),
        "negative_fraction": float((labels_NK.sum(axis=1) == 0).mean()) if read.labels else None,
        "labels_per_image": float(labels_NK.sum(axis=1).mean()) if read.labels else None,
        "co_occurrence": pairs,
    }


def _together(labels_NK: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(K, K) how many images have both labels; of K itself, how many have it.

    Sums of 0 and 1 in float32 are exact below 2**24, and BLAS adds no integers.
    """
    together_KK = np.zeros((labels_NK.shape[1],) * 2, np.int64)
    for start in range(0, len(labels_NK), _ROWS):
        part_NK = labels_NK[start : start + _ROWS].astype(np.float32)
        together_KK += (part_NK.T @ part_NK).astype(np.int64)
    return together_KK


def _listed(entries: Sequence[str]) -> dict[str, Any]:
    return {"count": len(entries), "examples": list(entries[:_SHOWN])}


def preview(data: DataSpec, *, test: bool = False) -> str:
    """What can be known before anything is decoded; raises DataError where that shows a mistake."""
    read = read_data(data, test=test)
    return summary(build_report(read), "" if test else f"split: {data.split.method}, made when packed")
