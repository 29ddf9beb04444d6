"""The stages as small picklable values; what they need of the pipeline is imported when they run.

`python -m jobs.stages [module ...]` reads one task as a JSON line and runs it, so that each stage and cell is a
process of its own. When the writer of that line goes away, the stage saves and stops.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from jobs import ledger
from pipeline.spec.model_names import CNNS
from pipeline.storage.files import display_path
from pipeline.training.dynamo_stub import install_dynamo_stub

EXIT_FAILED = 2  # a PipelineError: said in one line, worth no traceback
EXIT_STOPPED = 75  # stopped by a signal with everything saved; starting again goes on


@dataclass(frozen=True)
class WrangleTask:
    """Pack a data set (and split it), unless that is done."""

    data: str  # DataSpec as JSON
    data_root: str
    test: bool = False

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.data.layout import split_path
        from pipeline.data.packed import PackedSet
        from pipeline.data.splits import make_split, write_split
        from pipeline.data.wrangle import wrangle
        from pipeline.spec import DataSpec

        data = DataSpec.model_validate_json(self.data)
        folder = wrangle(data, Path(self.data_root), test=self.test)
        if not self.test and not split_path(folder, data).exists():
            packed = PackedSet.open(folder, verify=False)  # only labels and digests are used
            split = make_split(data, packed)
            write_split(split_path(folder, data), split, packed)
            print(split.summary())
        return 0


@dataclass(frozen=True)
class FetchWeightsTask:
    """Download torchvision's weights by name, where the internet is."""

    model: str  # ModelSpec as JSON
    folder: str

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.models.weights import fetch_weights
        from pipeline.spec import ModelSpec

        print(fetch_weights(ModelSpec.model_validate_json(self.model), Path(self.folder)))
        return 0


@dataclass(frozen=True)
class TrainTask:
    """Train one cell from wherever it stands to its complete artifacts."""

    run: str
    spec: str  # the resolved Spec as JSON: what is queued is what was planned, whatever happens to files
    identity: str
    packed: str
    split: str
    weights_folder: str

    stream: str = ""  # cells with an equal one can share batches; "": with none

    def __call__(self) -> int:
        """Exit status."""
        return TrainGroupTask((self,))()


@dataclass(frozen=True)
class TrainGroupTask:
    """Train cells that share a stream of batches in one process, each exactly as if alone."""

    trains: tuple[TrainTask, ...]

    def __post_init__(self) -> None:
        """From JSON they come as mappings."""
        trains = tuple(t if isinstance(t, TrainTask) else TrainTask(**t) for t in self.trains)
        object.__setattr__(self, "trains", trains)

    def __call__(self) -> int:
        """Exit status: the worst of them."""
        from pipeline.training.stop_signal import StopFlag

        stop = StopFlag().install()
        with contextlib.ExitStack() as owned:
            attempts = [(t, a) for t in self.trains if (a := self._start(t, owned)) is not None]
            self._train(attempts, stop)
        if any(not attempt.is_done and attempt.error is None for _, attempt in attempts):
            return EXIT_STOPPED
        return EXIT_FAILED if any(attempt.error is not None for _, attempt in attempts) else 0

    def _start(self, task: TrainTask, owned: contextlib.ExitStack) -> Any:
        """An attempt, its folder owned and its manifest `started`; None where the cell is complete already."""
        from pipeline.errors import DivergedError, PipelineError
        from pipeline.storage.run_dir import RunDir
        from pipeline.training.attempt import Attempt

        run = RunDir(Path(task.run))
        attempt = Attempt(run, task.identity, run.log if len(self.trains) > 1 else None)
        try:
            owned.enter_context(run.owned())
        except PipelineError as error:  # its manifest is the owner's
            attempt.error = error
            print(f"error: {error}", file=sys.stderr, flush=True)
            return attempt
        reason = run.why_not_done(task.identity)
        if reason is None:
            return None  # another process finished it in the meantime
        with attempt.isolated():
            if reason.startswith("diverged: "):  # a requeued job meets it again
                raise DivergedError(reason.removeprefix("diverged: "))
            run.write_manifest(task.identity, "started")
        return attempt

    def _train(self, attempts: list[tuple[TrainTask, Any]], stop: Any) -> None:
        from pipeline.data.packed import PackedSet
        from pipeline.data.splits import read_split
        from pipeline.models.weights import fetch_weights
        from pipeline.spec import Spec
        from pipeline.spec.reading import dump
        from pipeline.storage.files import atomic_write, write_json
        from pipeline.storage.provenance import provenance
        from pipeline.training.learner import CellData, Learner
        from pipeline.training.loop import train

        data: CellData | None = None
        learners = []
        for task, attempt in attempts:
            if attempt.error is not None:
                continue
            with attempt.isolated():
                spec = Spec.model_validate_json(task.spec)
                with atomic_write(attempt.run.spec, "w") as file:
                    file.write(dump(spec))
                if data is None:
                    split = read_split(Path(task.split))
                    data = CellData(PackedSet.open(Path(task.packed)), split.train, split.validation)
                weights = fetch_weights(spec.train.model, Path(task.weights_folder))
                learner = Learner(spec, attempt, data, weights=weights)
                execution = asdict(learner.execution)
                facts = {"identity": task.identity, "data": data.packed.digest, "execution": execution}
                write_json(attempt.run.provenance, facts | provenance())
                learners.append(learner)
        try:
            train(learners, stop)
        except Exception as error:  # noqa: BLE001 - of what they share: the data, the validation
            for _, attempt in attempts:
                if attempt.error is None and not attempt.is_done:
                    attempt.fail(error)


@dataclass(frozen=True)
class EvaluateTask:
    """Decide, measure and rank every finished cell; write leaderboard, selection and report."""

    experiment: str
    cells: tuple[tuple[str, str, str], ...]  # folder name, identity, name without the seed
    evaluate: str  # EvaluateSpec as JSON
    submission: str  # SubmissionSpec as JSON
    monitor: str
    packed: str
    split: str
    data_digests: tuple[str, ...]
    reasons: dict[str, str] = field(default_factory=dict)  # why a cell is not complete, where it cannot say

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.evaluation.experiment import evaluate_experiment
        from pipeline.evaluation.selection import EvaluationInputs
        from pipeline.spec import EvaluateSpec, SubmissionSpec
        from pipeline.storage.run_dir import ExperimentDir

        evaluation = EvaluationInputs(
            ExperimentDir(Path(self.experiment)),
            tuple((name, identity, group) for name, identity, group in self.cells),
            EvaluateSpec.model_validate_json(self.evaluate),
            SubmissionSpec.model_validate_json(self.submission),
            tuple(self.data_digests),
        )
        evaluate_experiment(
            evaluation,
            monitor=self.monitor,
            packed_dir=Path(self.packed),
            split_file=Path(self.split),
            reasons=self.reasons,
        )
        return 0


@dataclass(frozen=True)
class PredictTask:
    """Score the test images under the best checkpoints of some cells, where that is missing."""

    experiment: str
    # cell -> packed test images and, where the test rows are part of it, the split
    tests: dict[str, tuple[str, str | None]]
    device: str

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.evaluation.prediction import predict
        from pipeline.storage.run_dir import RunDir

        runs = [RunDir(Path(self.experiment) / name) for name in self.tests]
        predict(runs, test_images(self.tests), device=self.device)
        return 0


def test_images(tests: dict[str, tuple[str, str | None]]) -> dict[str, tuple[Path, Path | None]]:
    """The test images of each cell, as paths."""
    return {name: (Path(packed), Path(split) if split else None) for name, (packed, split) in tests.items()}


@dataclass(frozen=True)
class SubmissionTask:
    """Predict with the selected cells where that is missing, and write the checked submission."""

    experiment: str
    cells: tuple[str, ...] | None  # None: those selected, known only when this runs
    # cell -> packed test images and, where it has the rows, the split
    tests: dict[str, tuple[str, str | None]]
    device: str
    evaluate: str  # EvaluateSpec as JSON

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.evaluation.prediction import predict
        from pipeline.evaluation.selection import selected_cells
        from pipeline.evaluation.submission import make_submission
        from pipeline.spec import EvaluateSpec
        from pipeline.storage.run_dir import ExperimentDir, RunDir

        experiment = ExperimentDir(Path(self.experiment))
        runs = [RunDir(experiment.path / name) for name in self.cells or ()] or selected_cells(experiment)
        tests = test_images({run.name: self.tests[run.name] for run in runs})
        predict(runs, tests, device=self.device)
        result = make_submission(experiment, runs, tests, EvaluateSpec.model_validate_json(self.evaluate))
        ledger.append(experiment.ledger, "submission", cell=", ".join(tests), test=result.test_metrics)
        print(f"submission: {display_path(experiment.submission)}\n{result.text}", flush=True)
        return 0


Task = (
    WrangleTask | FetchWeightsTask | TrainTask | TrainGroupTask | EvaluateTask | PredictTask | SubmissionTask
)
_TASKS: dict[str, type[Task]] = {task.__name__: task for task in get_args(Task)}


def encode(task: Task) -> str:
    """One line of JSON that `main` turns back into the task."""
    return json.dumps({"task": type(task).__name__, "arguments": asdict(task)}) + "\n"


def run_task(task: Task) -> int:
    """Run it here; a PipelineError becomes one line and an exit status."""
    from pipeline.errors import PipelineError

    install_dynamo_stub()
    try:
        return task()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED


def needed(task: Task) -> list[str]:
    """The slow imports of a task, which a process can do before it is given the task itself."""
    trains = (
        task.trains if isinstance(task, TrainGroupTask) else (task,) if isinstance(task, TrainTask) else ()
    )
    names = {json.loads(train.spec)["train"]["model"]["name"] for train in trains}
    return ["pipeline.training.loop"][: len(trains)] + ["torchvision.models"][: len(names - {*CNNS})]


def main() -> int:
    """Import the modules that the arguments name, read a task from standard input and run it."""
    # a stage that is stopped still tidies up after itself; a training cell saves instead
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))
    install_dynamo_stub()
    gc.disable()  # what imports make, stays: looking for garbage among it is a tenth of the start
    for name in sys.argv[1:]:
        with contextlib.suppress(Exception):  # the task meets it again, and says it in its own way
            importlib.import_module(name)
    gc.freeze()
    gc.enable()
    line = sys.stdin.readline()
    if not line:
        return EXIT_STOPPED  # whoever started it needs it no more
    message = json.loads(line)
    threading.Thread(target=_stop_with_writer, daemon=True).start()
    return run_task(_TASKS[message["task"]](**message["arguments"]))


def _stop_with_writer() -> None:
    sys.stdin.read()  # returns when the other end is closed, also by a SIGKILL of its process
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
