"""The submission file: written from the test scores, read again and checked. Torch-free."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.layout import REPORT
from pipeline.data.loading import Rows
from pipeline.data.overlap import Overlap, find_overlap
from pipeline.data.packed import PackedSet
from pipeline.data.sources import READ_ERRORS
from pipeline.data.splits import read_split
from pipeline.errors import SubmissionError
from pipeline.evaluation.selection import TestImages
from pipeline.metrics.bootstrap import bootstrap, intervals
from pipeline.metrics.decision_rule import DecisionRule, Validation, mean_scores
from pipeline.metrics.multilabel import all_metrics
from pipeline.spec import METRICS, EvaluateSpec
from pipeline.storage.files import atomic_write, read_json_or_empty, write_csv, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir

# N images, K labels, L labels of the test set


@dataclass(frozen=True)
class Submission:
    """What was written: a few lines for the terminal, and the metrics where the truth is known."""

    text: str
    test_metrics: dict[str, float] | None
    overlap: dict[str, Any] | None = None  # test images that training has: their number and the first pairs


def test_rows(packed: PackedSet, split_file: Path | None) -> Rows:
    """The rows to predict: the split's test rows, or all rows."""
    rows = np.arange(len(packed.ids)) if split_file is None else read_split(split_file).test
    if not len(rows):
        raise SubmissionError(
            f"{split_file}: no image is for test; add data.test, or test images to data.split"
        )
    return rows


def made_of(run: RunDir, packed_dir: Path, split_file: Path | None) -> str:
    """What test scores depend on: the checkpoint and the images."""
    checkpoint = run.read_manifest()["files"][run.checkpoint_best.name]["sha256"]
    return " ".join([checkpoint, packed_dir.name, split_file.name if split_file else "all"])


def is_predicted(run: RunDir, packed_dir: Path, split_file: Path | None) -> bool:
    """True when `scores_test.npz` is there, complete, and made from the current checkpoint and images."""
    try:
        with run.scores_test.open("rb") as opened, np.load(opened) as file:
            arrays = {name: file[name] for name in file.files}  # reading compares each with its CRC
            return str(arrays["made_of"]) == made_of(run, packed_dir, split_file)
    except (*READ_ERRORS, KeyError, SyntaxError):
        return False


def predicted_set(run: RunDir) -> str | None:
    """The name of the packed set whose scores `scores_test.npz` holds; None where there are none."""
    try:
        with run.scores_test.open("rb") as opened, np.load(opened) as file:
            return str(file["made_of"]).split(" ")[1]
    except (*READ_ERRORS, KeyError, IndexError, SyntaxError):
        return None


def make_submission(
    experiment: ExperimentDir,
    runs: Sequence[RunDir],
    tests: Mapping[str, TestImages],
    evaluate: EvaluateSpec,
    trained_on: Mapping[str, tuple[Path, Path]] | None = None,
) -> Submission:
    """Decide on the mean test scores of `runs`, write `submission.csv`, and check what was written.

    `trained_on` is the packed set and split of each run, by name: its pictures that are test images too
    are named beside the score.

    The rule is fitted on the mean validation scores of the same runs, as evaluate did; test scores of
    another checkpoint than the run's current one are refused.
    """
    rule_of = Validation.mean([Validation.read(run) for run in runs])
    rule = DecisionRule.fit(evaluate, rule_of.scores_NK, rule_of.targets_NK)
    packed = PackedSet.open(tests[runs[0].name][0])
    rows = test_rows(packed, tests[runs[0].name][1])
    names = [packed.names[row] for row in rows]
    labels = rule_of.labels
    scores_NK = _mean_test_scores(runs, tests, names, labels)
    decisions_NK = rule(scores_NK)
    left_out = unscored(*tests[runs[0].name])
    written = with_unscored(names, decisions_NK, left_out)
    path = experiment.submission
    before, made = (path.read_bytes(), path.stat().st_mtime) if path.exists() else (b"", 0.0)
    write_submission(path, written[0], labels, written[1])
    check_submission(path, written[0], labels, written[1])
    positives = decisions_NK.sum(axis=1)
    cells = runs[0].name if len(runs) == 1 else f"the mean scores of {', '.join(run.name for run in runs)}"
    lines = [
        f"  {len(names)} images x {len(labels)} labels from {cells}, {rule.text}: "
        f"{positives.mean():.2f} labels an image, {100 * (positives == 0).mean():.1f} % without a label; checked",
    ]
    if left_out:
        lines.append(
            f"  {len(left_out)} images could not be scored and have 0 for every label: "
            f"{_some([name for _, name in left_out])}"
        )
    if before and before != path.read_bytes():
        lines.append(f"  the submission before is kept as {_keep(path, before, made)}")
    metrics, said = score_test(labels, scores_NK, decisions_NK, packed.labels, packed.labels_NK[rows])
    overlap = _overlap(runs, tests, trained_on or {})
    truth_NK = aligned_truth(labels, packed.labels, packed.labels_NK[rows])
    ends = {} if truth_NK is None else intervals(bootstrap(scores_NK, decisions_NK, truth_NK))
    _write_test_metrics(experiment, runs, len(rows), (metrics or {}) | ends, overlap)
    if overlap is None:
        return Submission("\n".join([*lines, *said]), metrics)
    told = {"images": overlap.count, "of": overlap.of, "first": [list(pair) for pair in overlap.pairs]}
    return Submission("\n".join([*lines, *said, f"  note: {overlap.short()}"]), metrics, told)


def _mean_test_scores(
    runs: Sequence[RunDir], tests: Mapping[str, TestImages], names: Sequence[str], labels: Sequence[str]
) -> npt.NDArray[np.float32]:
    """(N, K): the mean over the runs; a SubmissionError where one has other images, labels or a newer checkpoint."""
    parts = []
    for run in runs:
        if not is_predicted(run, *tests[run.name]):
            raise SubmissionError(
                f"{run.scores_test}: was not made from the current checkpoint; run `make predict`"
            )
        with np.load(run.scores_test) as file:
            if file["names"].tolist() != names or file["labels"].tolist() != labels:
                raise SubmissionError(
                    f"{run.scores_test}: has other test images or labels than {runs[0].name}; "
                    "only cells of one data set can be averaged"
                )
            parts.append(file["scores"])
    return mean_scores(parts)


def _overlap(
    runs: Sequence[RunDir], tests: Mapping[str, TestImages], trained_on: Mapping[str, tuple[Path, Path]]
) -> Overlap | None:
    """Test images that the training or validation of a run has: those of the run with most. None where none has."""
    found = []
    for run in runs:
        test, test_split = tests[run.name]
        packed, split = trained_on.get(run.name, (None, None))
        if test_split is None and packed is not None and split is not None and split.exists():
            found.append(find_overlap(packed, split, test))
    most = max(found, key=lambda overlap: overlap.count, default=None)
    return most if most is not None and most.count else None


def score_test(
    labels: Sequence[str],
    scores_NK: npt.NDArray[np.float32],
    decisions_NK: npt.NDArray[np.uint8],
    true_labels: Sequence[str],
    truth_NL: npt.NDArray[np.uint8],
) -> tuple[dict[str, float] | None, list[str]]:
    """The metrics of test images whose labels are known, matched by name, and what to say of them.

    A trained label that is not among `true_labels` counts as absent from every image; one that was not
    trained is left out. None where there are no labels, or none in common.
    """
    column = {label: k for k, label in enumerate(true_labels)}
    lacking = [label for label in labels if label not in column]
    foreign = [label for label in true_labels if label not in set(labels)]
    if not column:
        return None, []
    if len(lacking) == len(labels):
        return None, [
            "  no score: the test labels and those that were trained have no name in common "
            f"(trained: {_some(labels)}; in the test set: {_some(true_labels)}); see data.test.labels"
        ]
    truth_NK = aligned_truth(labels, true_labels, truth_NL)
    assert truth_NK is not None
    metrics = all_metrics(scores_NK, decisions_NK, truth_NK)
    shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("f1_micro", "f1_macro", "map_macro"))
    lines = [f"  the true labels of these images are known: {shown}"]
    if lacking:
        lines.append(
            f"  not among the test labels, so counted as absent from every test image: {_some(lacking)}"
        )
    if foreign:
        lines.append(f"  not trained, so left out of the score: {_some(foreign)}")
    return metrics, lines


def aligned_truth(
    labels: Sequence[str], true_labels: Sequence[str], truth_NL: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8] | None:
    """The truth in the columns of `labels`, absent where it lacks one; None without a label in common."""
    column = {label: k for k, label in enumerate(true_labels)}
    if column.keys().isdisjoint(labels):
        return None
    truth_NK = np.zeros((len(truth_NL), len(labels)), np.uint8)
    for k, label in enumerate(labels):
        if label in column:
            truth_NK[:, k] = truth_NL[:, column[label]]
    return truth_NK


def unscored(packed_dir: Path, split_file: Path | None) -> list[tuple[int, str]]:
    """(place among all images of the test source, name) of those that the packed set lacks, in their order."""
    if split_file is not None:
        return []  # test rows of a split are packed images
    report = read_json_or_empty(packed_dir / REPORT)
    found = [(int(place), str(name)) for place, name in report.get("left_out", [])]
    missing = report.get("undecodable", {}).get("count", 0)
    if missing and "left_out" not in report:
        raise SubmissionError(
            f"{packed_dir}: was packed by a version that did not note where its {missing} undecodable images belong; "
            "delete it and run the same command"
        )
    return found


def with_unscored(
    names: Sequence[str], decisions_NK: npt.NDArray[np.uint8], left_out: Sequence[tuple[int, str]]
) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """Names and decisions of all images of the source in its order: no label for those that have no scores."""
    all_names, rows = list(names), decisions_NK
    for place, name in left_out:  # ascending, so each finds those before it in place
        all_names.insert(place, name)
    if left_out:
        rows = np.zeros((len(all_names), decisions_NK.shape[1]), np.uint8)
        rows[np.setdiff1d(np.arange(len(all_names)), [place for place, _ in left_out])] = decisions_NK
    return all_names, rows


def _keep(path: Path, body: bytes, made: float) -> str:
    """Write what a file held before beside it, under the date it was made; returns that name."""
    date = time.strftime("%Y-%m-%d-%H%M%S", time.localtime(made))
    kept = path.with_name(f"{path.stem}-{date}{path.suffix}")
    with atomic_write(kept) as file:
        file.write(body)
    return kept.name


def _write_test_metrics(
    experiment: ExperimentDir,
    runs: Sequence[RunDir],
    images: int,
    values: Mapping[str, float],
    overlap: Overlap | None,
) -> None:
    """`test_metrics.json`: each metric of the test images with its 95 % interval; no file where none is known."""
    if not values:
        experiment.test_metrics.unlink(missing_ok=True)
        return
    metrics = {
        name: {"value": values[name], "lo": values[f"{name}_lo"], "hi": values[f"{name}_hi"]}
        for name in METRICS
    }
    write_json(
        experiment.test_metrics,
        {
            "cells": [run.name for run in runs],
            "images": images,
            "note": f"; {overlap.short()}" if overlap and overlap.count else "",
            "metrics": metrics,
        },
    )


def _some(names: Sequence[str], shown: int = 10) -> str:
    rest = f", ... ({len(names)})" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def write_submission(
    path: Path, names: Sequence[str], labels: Sequence[str], decisions_NK: npt.NDArray[np.uint8]
) -> None:
    """`ids,<label>,...` and a row of 0/1 per image, atomically."""
    rows = zip(names, decisions_NK.tolist(), strict=True)
    write_csv(path, ["ids", *labels], ([name, *decisions] for name, decisions in rows))


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
