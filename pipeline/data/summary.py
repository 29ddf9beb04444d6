"""What is known of a data set, in at most ten lines for the screen. Torch- and numpy-free: plans print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.images import DARK_BELOW
from pipeline.data.labels.table import some
from pipeline.data.layout import REPORT
from pipeline.data.looks import state_of
from pipeline.data.remembered import remembered
from pipeline.storage.files import read_json_or_empty

_LINES = 10
_LABELS_SHOWN = 8
_IMAGE_OF = {"train": "training", "validation": "validation"}
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
    """What is known of a packed set and its split; "" where the report is missing."""
    report = read_json_or_empty(packed / REPORT)
    if not report:
        return ""
    split = read_json_or_empty(split_file) if split_file is not None else {}
    if not split:
        return summary(report)
    sizes = {name: counts["images"] for name, counts in split["counts"].items()}
    return summary(report, split_lines(sizes, split["left_out"], split.get("labels_without", {})))


def split_sizes(split_file: Path, cache: Path) -> dict[str, int]:
    """How many images each part of a split has, {} where it cannot be read; its rows are read once for each state."""

    def counted() -> dict[str, int]:
        counts = read_json_or_empty(split_file).get("counts", {})
        return {part: count["images"] for part, count in counts.items()}

    state = state_of(split_file)
    return dict(remembered(cache, "split", [str(split_file), state], counted)) if state else {}


def split_lines(
    sizes: Mapping[str, int],
    left_out: Mapping[str, Sequence[str]],
    labels_without: Mapping[str, Sequence[str]],
) -> str:
    """One line of the sizes, and one per reason why images were left out or labels are missing."""
    lines = ["split: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)]
    for reason, names in left_out.items():
        lines.append(f"left out: {len(names):,} {reason}, e.g. {names[0]}")
    for name, labels in labels_without.items():
        what = "1 label has" if len(labels) == 1 else f"{len(labels)} labels have"
        lines.append(f"unusual: {what} no {_IMAGE_OF[name]} image: {some(labels)}")
    return "\n".join(lines)


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
