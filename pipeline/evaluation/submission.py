"""The submission: test scores decided, written, checked, and measured where the truth is known. Torch-free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from zipfile import ZipFile

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
from pipeline.evaluation.submission_file import BitRows, part_rows, replace_submission
from pipeline.metrics.bootstrap import bootstrap, intervals
from pipeline.metrics.decision_rule import DecisionRule, Validation, mean_scores
from pipeline.metrics.multilabel import Scores, all_metrics
from pipeline.spec import METRICS, EvaluateSpec
from pipeline.storage.files import read_json_or_empty, write_json
from pipeline.storage.npz_rows import npz_rows
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.typed import typed

# N images, K labels, L labels of the test set, P images of a part, B bytes of 8 decisions, T images of the source


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
        with ZipFile(run.scores_test) as archive:
            damaged = archive.testzip()  # compares each array with its CRC, and holds none
        with np.load(run.scores_test) as file:
            return damaged is None and str(file["made_of"]) == made_of(run, packed_dir, split_file)
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
    another checkpoint than the run's current one are refused. Scores are read, decided and written a
    part at a time, so memory holds a bit per image and label; all scores only where the truth is known.
    """
    rule_of = Validation.mean(map(Validation.read, runs))
    rule = DecisionRule.fit(evaluate, rule_of.scores_NK, rule_of.targets_NK)
    packed = PackedSet.open(tests[runs[0].name][0], verify=False)  # only names and labels are used
    rows = test_rows(packed, tests[runs[0].name][1])
    names = [packed.names[row] for row in rows.tolist()]
    labels = rule_of.labels
    truth_NK = aligned_truth(labels, packed.labels, packed.labels_NK[rows])
    scores = _mean_test_scores(runs, tests, names, labels)
    bits_NB, positives_N, scores_NK = _decide(
        rule, scores, (len(names), len(labels)), keep=truth_NK is not None
    )
    left_out = unscored(*tests[runs[0].name])
    kept = replace_submission(experiment.submission, labels, *with_unscored(names, bits_NB, left_out))
    cells = runs[0].name if len(runs) == 1 else f"the mean scores of {', '.join(run.name for run in runs)}"
    lines = [
        f"  {len(names)} images x {len(labels)} labels from {cells}, {rule.text}: "
        f"{positives_N.mean():.2f} labels an image, {100 * (positives_N == 0).mean():.1f} % without a label; checked",
    ]
    if left_out:
        lines.append(
            f"  {len(left_out)} images could not be scored and have 0 for every label: "
            f"{_some([name for _, name in left_out])}"
        )
    if kept:
        lines.append(f"  the submission before is kept as {kept}")
    decisions_NK = BitRows(bits_NB[: len(scores_NK)], len(labels))[:]
    metrics, said = score_test(labels, scores_NK, decisions_NK, packed.labels, packed.labels_NK[rows])
    overlap = _overlap(runs, tests, trained_on or {})
    ends = {} if truth_NK is None else intervals(bootstrap(scores_NK, decisions_NK, truth_NK))
    _write_test_metrics(experiment, runs, len(rows), (metrics or {}) | ends, overlap)
    if overlap is None:
        return Submission("\n".join([*lines, *said]), metrics)
    told = {"images": overlap.count, "of": overlap.of, "first": [list(pair) for pair in overlap.pairs]}
    return Submission("\n".join([*lines, *said, f"  note: {overlap.short()}"]), metrics, told)


def _decide(
    rule: DecisionRule, scores: Iterable[Scores], shape: tuple[int, int], *, keep: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], Scores]:
    """The decisions as bits (N, B), how many labels each image gets (N,), the scores; (0, K) unless they are kept."""
    images, labels = shape
    bits_NB, positives_N = np.zeros((images, -(-labels // 8)), np.uint8), np.zeros(images, np.int64)
    kept_NK, done = np.zeros((images if keep else 0, labels), np.float32), 0
    for scores_PK in scores:
        part, decisions_PK = slice(done, done + len(scores_PK)), rule(scores_PK)
        bits_NB[part], positives_N[part] = np.packbits(decisions_PK, axis=1), decisions_PK.sum(axis=1)
        if keep:
            kept_NK[part] = scores_PK
        done = part.stop
    return bits_NB, positives_N, kept_NK


def _mean_test_scores(
    runs: Sequence[RunDir], tests: Mapping[str, TestImages], names: Sequence[str], labels: Sequence[str]
) -> Iterator[Scores]:
    """(P, K): the mean over the runs, part by part.

    A SubmissionError, before the first part, where one has other images, labels or a newer checkpoint.
    """
    for run in runs:
        if not is_predicted(run, *tests[run.name]):
            raise SubmissionError(
                f"{run.scores_test}: was not made from the current checkpoint; run `{typed('predict')}`"
            )
    with contextlib.ExitStack() as opened:
        archives = [opened.enter_context(ZipFile(run.scores_test)) for run in runs]
        for archive, run in zip(archives, runs, strict=True):
            if not (_holds(archive, "names", names) and _holds(archive, "labels", labels)):
                raise SubmissionError(
                    f"{run.scores_test}: has other test images or labels than {runs[0].name}; "
                    "only cells of one data set can be averaged"
                )
        scores = (npz_rows(archive, "scores", part_rows(len(labels))) for archive in archives)
        yield from map(mean_scores, zip(*scores, strict=True))


def _holds(archive: ZipFile, name: str, expected: Sequence[str]) -> bool:
    found = (each for part in npz_rows(archive, name, part_rows(1)) for each in part.tolist())
    return all(one == other for one, other in zip_longest(found, expected))


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
    names: Sequence[str], rows_NX: npt.NDArray[np.uint8], left_out: Sequence[tuple[int, str]]
) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """Names and decisions (or their bits) of all images of the source in its order: none for those without scores."""
    if not left_out:
        return list(names), rows_NX
    total = len(names) + len(left_out)
    scored_T = np.ones(total, bool)
    scored_T[[place for place, _ in left_out]] = False
    all_names, all_TX = [""] * total, np.zeros((total, rows_NX.shape[1]), np.uint8)
    for place, name in [*left_out, *zip(np.flatnonzero(scored_T).tolist(), names, strict=True)]:
        all_names[place] = name
    all_TX[scored_T] = rows_NX
    return all_names, all_TX


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
