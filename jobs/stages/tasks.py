"""The stages besides training: wrangle, fetch weights, evaluate, predict, submission."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs import ledger
from jobs.stages.exit_status import EXIT_RANK_LOST
from pipeline.errors import LostRankError
from pipeline.evaluation.selection import EvaluationInputs, TestImages, selected_cells
from pipeline.progress import report
from pipeline.spec import DataSpec, EvaluateSpec, ModelSpec
from pipeline.storage.files import display_path
from pipeline.storage.run_dir import ExperimentDir, RunDir


@dataclass(frozen=True)
class WrangleTask:
    """Pack a data set (and split it), unless that is done."""

    data: DataSpec
    data_root: Path
    test: bool = False

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.data.columns import read_columns
        from pipeline.data.history import known_identity, remember_identity
        from pipeline.data.layout import packed_path, split_path
        from pipeline.data.packed import PackedSet
        from pipeline.data.splits import make_split, write_split
        from pipeline.data.summary import data_summary
        from pipeline.data.wrangle import wrangle

        report("reading images and labels")
        known = known_identity(self.data, self.data_root, test=self.test)
        if known.gone is None:
            folder = wrangle(self.data, self.data_root, test=self.test)
            remember_identity(self.data, self.data_root, known.identity, test=self.test)
        else:  # its packed set is complete, and can be split once more
            folder = packed_path(self.data_root, known.identity)
        split_file = split_path(folder, self.data)
        if not self.test and not split_file.exists():
            packed = PackedSet.open(folder, verify=False)  # only labels and digests are used
            split = make_split(self.data, packed, read_columns(self.data, packed))
            write_split(split_file, split, packed)
        print(data_summary(folder, None if self.test else split_file), flush=True)
        return 0


@dataclass(frozen=True)
class OverlapTask:
    """Refuse a packed test set that has pictures of training or validation, unless they are allowed."""

    data: DataSpec
    packed: Path
    split: Path
    test: Path

    def __call__(self) -> int:
        """Exit status; raises DataError for what is refused."""
        from pipeline.data.overlap import find_overlap, judge

        report("comparing training and test images")
        said = judge(self.data, find_overlap(self.packed, self.split, self.test))
        if said is not None:
            print(said, flush=True)
        return 0


@dataclass(frozen=True)
class FetchWeightsTask:
    """Download published weights by name, where the internet is."""

    model: ModelSpec
    folder: Path

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.models.weights import fetch_weights

        report("downloading the weights")
        print(fetch_weights(self.model, self.folder))
        return 0


@dataclass(frozen=True)
class EvaluateTask:
    """Decide, measure and rank every finished cell; write leaderboard, selection and report."""

    inputs: EvaluationInputs
    monitor: str
    sets: tuple[tuple[Path, Path], ...]  # packed sets and splits: those of the baselines
    reasons: Mapping[str, str] = field(
        default_factory=dict
    )  # why a cell is not complete, where it cannot say

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.evaluation.experiment import evaluate_experiment
        from pipeline.report import write_report

        report("measuring the cells")
        evaluate_experiment(
            self.inputs,
            monitor=self.monitor,
            sets=self.sets,
            reasons=self.reasons,
        )
        report("writing the report")
        write_report(self.inputs.experiment, [name for name, _ in self.inputs.cells])
        return 0


@dataclass(frozen=True)
class PredictTask:
    """Score the test images under the best checkpoints of some cells, where that is missing."""

    experiment: ExperimentDir
    tests: Mapping[str, TestImages]  # of each cell, by folder name
    device: str
    ranks: int = 1  # processes that share the images

    def __call__(self) -> int:
        """Exit status."""
        report("loading the network")
        from pipeline.distributed.meeting import joined
        from pipeline.evaluation.prediction import predict

        runs = [RunDir(self.experiment.path / name) for name in self.tests]
        try:
            with joined(self.ranks, self.experiment.meeting, self.device) as group:
                predict(runs, self.tests, device=self.device, group=group)
        except LostRankError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return EXIT_RANK_LOST
        return 0


@dataclass(frozen=True)
class SubmissionTask:
    """Predict with the selected cells where that is missing, and write the checked submission."""

    experiment: ExperimentDir
    cells: tuple[str, ...] | None  # None: those selected, known only when this runs
    tests: Mapping[str, TestImages]  # of each cell that may be selected, by folder name
    device: str
    evaluate: EvaluateSpec
    trained_on: Mapping[str, tuple[Path, Path]] = field(
        default_factory=dict
    )  # packed set and split, as above

    @property
    def runs(self) -> list[RunDir]:
        """The cells that make the submission."""
        named = [RunDir(self.experiment.path / name) for name in self.cells or ()]
        return named or selected_cells(self.experiment)

    def prediction(self) -> PredictTask | None:
        """What scores the test images of these cells, where that is missing."""
        from pipeline.evaluation.submission import is_predicted

        tests = {run.name: self.tests[run.name] for run in self.runs}
        missing = {run.name: tests[run.name] for run in self.runs if not is_predicted(run, *tests[run.name])}
        return PredictTask(self.experiment, missing, self.device) if missing else None

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.evaluation.submission import is_predicted, make_submission

        experiment, runs = self.experiment, self.runs
        tests = {run.name: self.tests[run.name] for run in runs}
        if not all(is_predicted(run, *tests[run.name]) for run in runs):
            from pipeline.evaluation.prediction import predict  # which imports torch

            predict(runs, tests, device=self.device)
        report("writing the submission")
        before = _bytes(experiment.test_metrics)
        result = make_submission(experiment, runs, tests, self.evaluate, self.trained_on)
        if _bytes(experiment.test_metrics) != before:
            from pipeline.report import write_report

            write_report(experiment)  # with the test score
        details = {"test": result.test_metrics, "overlap": result.overlap}
        ledger.append(experiment.ledger, "submission", cell=", ".join(tests), **details)
        print(f"submission: {display_path(experiment.submission)}\n{result.text}", flush=True)
        return 0


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
