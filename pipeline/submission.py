"""The submission file: written from the test scores, read again and checked. Torch-free."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.loading import Rows
from pipeline.data.packed import PackedSet
from pipeline.data.sources import READ_ERRORS
from pipeline.data.splits import read_split
from pipeline.errors import SubmissionError
from pipeline.files import atomic_write
from pipeline.metrics import all_metrics
from pipeline.rundir import ExperimentDir, RunDir
from pipeline.thresholds import decide

# N images, K labels


@dataclass(frozen=True)
class Submission:
    """What was written: a few lines for the terminal, and the metrics where the truth is known."""

    text: str
    test_metrics: dict[str, float] | None


def test_rows(packed: PackedSet, split_file: Path | None) -> Rows:
    """The rows to predict: the split's test rows, or the whole set."""
    return np.arange(len(packed.ids)) if split_file is None else read_split(split_file).test


def made_of(run: RunDir, packed_dir: Path, split_file: Path | None) -> str:
    """What test scores depend on: the checkpoint and the images."""
    checkpoint = run.read_manifest()["files"][run.checkpoint_best.name]["sha256"]
    return " ".join([checkpoint, packed_dir.name, split_file.name if split_file else "all"])


def is_predicted(run: RunDir, packed_dir: Path, split_file: Path | None) -> bool:
    """True when `scores_test.npz` is there, whole, and made of the present checkpoint and images."""
    try:
        with np.load(run.scores_test) as file:
            arrays = {name: file[name] for name in file.files}  # reading compares each with its CRC
            return str(arrays["made_of"]) == made_of(run, packed_dir, split_file)
    except (*READ_ERRORS, ValueError, KeyError, SyntaxError):
        return False


def make_submission(
    experiment: ExperimentDir,
    run: RunDir,
    packed_dir: Path,
    split_file: Path | None,
    *,
    threshold: float | str,
) -> Submission:
    """Decide on `run`'s test scores by the spec's rule, write `submission.csv`, and check what was written."""
    packed = PackedSet.open(packed_dir)
    rows = test_rows(packed, split_file)
    with np.load(run.scores_test) as file:
        names, labels, scores_NK = file["names"].tolist(), file["labels"].tolist(), file["scores"]
        tuned_K = file["thresholds_per_label"]
    per_label = threshold == "per_label"
    thresholds_K = tuned_K if per_label else np.full(len(labels), threshold, np.float32)
    decisions_NK = decide(scores_NK, thresholds_K)
    write_submission(experiment.submission, names, labels, decisions_NK)
    expected = [packed.names[row] for row in rows]
    check_submission(experiment.submission, expected, labels, decisions_NK)
    rule = "thresholds tuned per label on validation" if per_label else f"threshold {threshold:g}"
    positives = decisions_NK.sum(axis=1)
    lines = [
        f"  {len(names)} images x {len(labels)} labels from {run.name}, {rule}: "
        f"{positives.mean():.2f} labels an image, {100 * (positives == 0).mean():.1f} % blank; checked",
    ]
    metrics = None
    if packed.labels_NK.shape[1] == len(labels) and list(packed.labels) == labels:
        metrics = all_metrics(scores_NK, decisions_NK, packed.labels_NK[rows])
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("f1_micro", "f1_macro", "map_macro"))
        lines.append(f"  the truth of these images is known: {shown}")
    return Submission("\n".join(lines), metrics)


def write_submission(
    path: Path, names: Sequence[str], labels: Sequence[str], decisions_NK: npt.NDArray[np.uint8]
) -> None:
    """`ids,<label>,...` and a row of 0/1 per image, atomically."""
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["ids", *labels])
        writer.writerows([name, *row] for name, row in zip(names, decisions_NK.tolist(), strict=True))


def check_submission(
    path: Path, names: Sequence[str], labels: Sequence[str], decisions_NK: npt.NDArray[np.uint8]
) -> None:
    """Read the file again: columns, ids, their order, values; SubmissionError names the first difference."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if header != ["ids", *labels]:
        raise SubmissionError(f"{path}: the header is {header}, expected {['ids', *labels]}")
    if len(rows) != len(names):
        raise SubmissionError(f"{path}: {len(rows)} rows for {len(names)} test images")
    for i, (row, name, decisions) in enumerate(zip(rows, names, decisions_NK.tolist(), strict=True)):
        if row != [name, *map(str, decisions)] or not set(row[1:]) <= {"0", "1"}:
            raise SubmissionError(f"{path}:{i + 2}: {row} is not the row of {name}")
