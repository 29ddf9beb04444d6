"""The report of wrangle: counts and examples of every problem, and label statistics. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.labels import LabelTable
from pipeline.errors import DataError
from pipeline.spec import DataSpec

# N images, K labels
_SHOWN = 50  # examples of each kind of problem


@dataclass(frozen=True)
class Problems:
    """What could not be used: undecodable files, entries of the image list, images without a label row, labels."""

    bad: Sequence[str]  # "member: reason"
    unlisted: Sequence[str]
    outside: Sequence[str]
    unknown: Sequence[tuple[str, str]]  # (label, reference) that names no image


def build_report(
    names: Sequence[str],
    pixel_digests: Sequence[str],
    problems: Problems,
    table: LabelTable,
    labels_NK: npt.NDArray[np.uint8],
) -> dict[str, Any]:
    """The report of a packed set of N images: problems, label counts, label pairs, exact duplicates."""
    groups: dict[str, list[str]] = {}
    for name, pixels in zip(names, pixel_digests, strict=True):
        groups.setdefault(pixels, []).append(name)
    duplicates = [names for names in groups.values() if len(names) > 1]
    unknown = problems.unknown
    counts = labels_NK.sum(axis=0, dtype=np.int64)
    together_KK = labels_NK.T.astype(np.int64) @ labels_NK.astype(np.int64)
    return {
        "images": len(names) + len(problems.bad),
        "packed": len(names),
        "quarantined": _listed(problems.bad),
        "listed_but_missing": _listed(problems.unlisted),
        "without_label_row": _listed(problems.outside),
        "labels_of_unknown_images": {
            "count": len(unknown),
            "by_label": dict(Counter(label for label, _ in unknown)),
            "examples": [f"{table.read_from[label]}: {reference}" for label, reference in unknown[:_SHOWN]],
        },
        "exact_duplicates": {"groups": len(duplicates), "examples": duplicates[:_SHOWN]},
        "label_counts": dict(zip(table.labels, counts.tolist(), strict=True)),
        "negative_fraction": float((labels_NK.sum(axis=1) == 0).mean()) if table.labels else None,
        "labels_per_image": float(labels_NK.sum(axis=1).mean()) if table.labels else None,
        "co_occurrence": dict(zip(table.labels, together_KK.tolist(), strict=True)),
    }


def _listed(entries: Sequence[str]) -> dict[str, Any]:
    return {"count": len(entries), "examples": list(entries[:_SHOWN])}


def refuse_if_bad(
    report: dict[str, Any], table: LabelTable, data: DataSpec, source: Path, *, test: bool
) -> None:
    """Raise a DataError where a problem exceeds `set_aside`, or a label has no image at all."""
    if not test:
        for label in table.labels:
            if not table.images_by_label[label]:
                raise DataError(
                    f"{table.read_from[label]}: no image has the label {label!r}; nothing can be learnt from "
                    "that. Fill the file, or remove the label"
                )
    references = sum(len(references) for references in table.images_by_label.values())
    listed = report["images"] + report["listed_but_missing"]["count"]
    limits = data.set_aside
    shares = (
        ("quarantined", "images cannot be decoded", listed, "undecodable"),
        ("listed_but_missing", "entries of data.image_list name no image", listed, "unknown_references"),
        (
            "without_label_row",
            "images have no row in the label file",
            listed + report["without_label_row"]["count"],
            "without_row",
        ),
        ("labels_of_unknown_images", "labels name unknown images", references, "unknown_references"),
    )
    for key, what, total, limit in shares:
        count = report[key]["count"]
        if count > getattr(limits, limit) * total:
            examples = "\n  ".join(report[key]["examples"][:5])
            raise DataError(
                f"{source}: {count} of {total} {what}, more than data.set_aside.{limit} "
                f"{getattr(limits, limit):g} allows; correct the data, or raise it to set them aside. The first:\n"
                f"  {examples}"
            )


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines, for the log."""
    lines = [f"packed {report['packed']} of {report['images']} images"]
    for key, what in (
        ("quarantined", "set aside, cannot be decoded"),
        ("listed_but_missing", "entries of the image list name no image"),
        ("without_label_row", "images without a row in the label file left out"),
        ("labels_of_unknown_images", "labels of unknown images"),
    ):
        if report[key]["count"]:
            lines.append(f"  {report[key]['count']} {what}, e.g. {report[key]['examples'][0]}")
    if report["exact_duplicates"]["groups"]:
        lines.append(f"  {report['exact_duplicates']['groups']} groups of exact duplicates")
    if report["label_counts"]:
        counts = ", ".join(f"{label} {count}" for label, count in report["label_counts"].items())
        lines.append(f"  {100 * report['negative_fraction']:.1f} % negative images; {counts}")
    return "\n".join(lines)
