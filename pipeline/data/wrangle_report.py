"""The report of wrangle: counts and examples of every problem, label statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.data.reading import DataRead, read_data
from pipeline.data.summary import summary
from pipeline.spec import DataSpec

# N images, K labels
_SHOWN = 50  # examples of each kind of problem


def build_report(read: DataRead, pixel_digests: Sequence[str] | None = None) -> dict[str, Any]:
    """What is known of a set of N images: problems, label counts, label pairs, exact duplicates.

    Without `pixel_digests` nothing was decoded yet, and duplicates are not known.
    """
    groups: dict[str, list[str]] = {}
    for image, pixels in zip(read.images, pixel_digests or (), strict=bool(pixel_digests)):
        groups.setdefault(pixels, []).append(image.name)
    duplicates = [names for names in groups.values() if len(names) > 1]
    labels_NK, problems = read.labels_NK, read.problems
    together_KK = labels_NK.T.astype(np.int64) @ labels_NK.astype(np.int64)
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
        "exact_duplicates": {"groups": len(duplicates), "examples": duplicates[:_SHOWN]},
        "label_counts": dict(zip(read.labels, labels_NK.sum(axis=0, dtype=np.int64).tolist(), strict=True)),
        "negative_fraction": float((labels_NK.sum(axis=1) == 0).mean()) if read.labels else None,
        "labels_per_image": float(labels_NK.sum(axis=1).mean()) if read.labels else None,
        "co_occurrence": dict(zip(read.labels, together_KK.tolist(), strict=True)),
    }


def _listed(entries: Sequence[str]) -> dict[str, Any]:
    return {"count": len(entries), "examples": list(entries[:_SHOWN])}


def preview(data: DataSpec, *, test: bool = False) -> str:
    """What can be known before anything is decoded; raises DataError where that shows a mistake."""
    read = read_data(data, test=test)
    return summary(build_report(read), "" if test else f"split: {data.split.method}, made when packed")
