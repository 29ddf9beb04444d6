"""The report of wrangle: counts and examples of every problem, label statistics, and the screen's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.decoding import DARK_BELOW
from pipeline.data.labels.table import some
from pipeline.data.layout import REPORT
from pipeline.data.reading import DataRead, read_data
from pipeline.data.splits import read_split
from pipeline.spec import DataSpec
from pipeline.storage.files import read_json_or_empty

# N images, K labels
_SHOWN = 50  # examples of each kind of problem
_LINES = 10  # of the summary
_LABELS_SHOWN = 8


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


_LEFT_OUT = {
    "undecodable": "cannot be decoded",
    "without_row": "without a row in the label file",
    "unlisted": "entries of the image list that name no image",
    "unknown_references": "references that name no image",
}

_ODD_PICTURES = {
    "constant": "pictures of a single colour",
    "dark": f"nearly black pictures (brightest value below {DARK_BELOW})",
}


def data_summary(packed: Path, split_file: Path | None) -> str:
    """What is known of a packed set and its split, in at most ten lines; "" where the report is missing."""
    report = read_json_or_empty(packed / REPORT)
    if not report:
        return ""
    split = read_split(split_file).summary() if split_file is not None and split_file.exists() else ""
    return summary(report, split)


def preview(data: DataSpec, *, test: bool = False) -> str:
    """What can be known before anything is decoded; raises DataError where that shows a mistake."""
    read = read_data(data, test=test)
    return summary(build_report(read), "" if test else f"split: {data.split.method}, made when packed")


def summary(report: Mapping[str, Any], split: str = "") -> str:
    """The report in at most ten lines: images, labels, splits, what was left out, what is unusual."""
    counts: dict[str, int] = report["label_counts"]
    lines = [f"images: {report['packed']:,}"]
    if counts:
        few = [f"{label} {count:,}" for label, count in list(counts.items())[:_LABELS_SHOWN]]
        more = f" and {len(counts) - _LABELS_SHOWN} more" if len(counts) > _LABELS_SHOWN else ""
        lines.append(f"{len(counts)} labels: {', '.join(few)}{more}")
        lines[0] += (
            f", {100 * report['negative_fraction']:.1f} % without a label, {report['labels_per_image']:.2f} "
            "labels an image"
        )
    else:
        lines.append("labels: none")
    lines += split.splitlines()
    for key, what in _LEFT_OUT.items():
        if report[key]["count"]:
            lines.append(f"left out: {report[key]['count']:,} {what}, e.g. {report[key]['examples'][0]}")
    unusual = list(report["notes"])
    if report["unmatched_files"]["count"]:
        files = report["unmatched_files"]
        unusual.append(f"{files['count']:,} image files match no name pattern: {some(files['examples'], 3)}")
    for key, what in _ODD_PICTURES.items():
        if report[key]["count"]:
            remedy = "; pictures of 16 bits need data.range: auto" if report[key].get("need_range") else ""
            unusual.insert(0, f"{report[key]['count']:,} {what}, e.g. {report[key]['examples'][0]}{remedy}")
    if report["exact_duplicates"]["groups"]:
        unusual.append(f"{report['exact_duplicates']['groups']:,} groups of exact duplicates")
    room = max(1, _LINES - len(lines))
    if len(unusual) > room:
        unusual[room - 1 :] = [f"{len(unusual) - room + 1} more in wrangle_report.json: " + unusual[room - 1]]
    return "\n".join([*lines, *(f"unusual: {note}" for note in unusual)])
