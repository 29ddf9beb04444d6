"""The stages as small picklable values; what they need of the pipeline is imported when they run.

`python -m jobs.stages` reads one task as a JSON line and runs it, so that each stage and cell is a
process of its own. When the writer of that line goes away, the stage saves and stops.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs import ledger
from pipeline.files import shown

EXIT_FAILED = 2  # a PipelineError: said in one line, worth no traceback
EXIT_STOPPED = 75  # stopped by a signal with everything saved; starting again goes on


@dataclass(frozen=True)
class Wrangle:
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
class FetchWeights:
    """Download torchvision's weights by name, where the internet is."""

    model: str  # ModelSpec as JSON
    folder: str

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.spec import ModelSpec
        from pipeline.weights import fetch_weights

        print(fetch_weights(ModelSpec.model_validate_json(self.model), Path(self.folder)))
        return 0


@dataclass(frozen=True)
class Train:
    """Train one cell from wherever it stands to its whole artifacts."""

    run: str
    spec: str  # the resolved Spec as JSON: what is queued is what was planned, whatever happens to files
    identity: str
    packed: str
    split: str
    weights_folder: str

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.errors import DivergedError, PipelineError, TrainingError
        from pipeline.rundir import RunDir

        run = RunDir(Path(self.run))
        with run.owned():
            reason = run.why_not_done(self.identity)
            if reason is None:
                return 0  # another process finished it in the meantime
            if reason.startswith("diverged: "):  # a requeued job meets it again
                raise DivergedError(reason)
            run.write_manifest(self.identity, "started")
            try:
                done = self._train(run)
            except PipelineError as error:
                state = "diverged" if isinstance(error, DivergedError) else "failed"
                run.write_manifest(self.identity, state, error=str(error).splitlines()[0])
                raise
            except Exception as error:  # recorded, then raised again
                text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                if type(error).__name__ == "OutOfMemoryError":  # torch's, of the GPU
                    text = "out of GPU memory; try a smaller train.batch_size or train.image_px"
                run.write_manifest(self.identity, "failed", error=text)
                raise TrainingError(text) if "GPU memory" in text else error from error
            if done:
                run.write_manifest(self.identity, "done")
            return 0 if done else EXIT_STOPPED

    def _train(self, run: Any) -> bool:
        from pipeline.data.packed import PackedSet
        from pipeline.data.splits import read_split
        from pipeline.files import atomic_write, write_json
        from pipeline.learner import CellData, Learner
        from pipeline.provenance import provenance
        from pipeline.spec import Spec
        from pipeline.specfile import dump
        from pipeline.stopping import StopFlag
        from pipeline.training import train
        from pipeline.weights import fetch_weights

        stop = StopFlag().install()
        spec = Spec.model_validate_json(self.spec)
        with atomic_write(run.spec, "w") as file:
            file.write(dump(spec))
        packed = PackedSet.open(Path(self.packed))
        split = read_split(Path(self.split))
        data = CellData(packed=packed, train=split.train, validation=split.validation)
        weights = fetch_weights(spec.train.model, Path(self.weights_folder))
        learner = Learner(spec, self.identity, run, data, weights=weights)
        facts = {"identity": self.identity, "data": packed.digest, "settled": learner.settled.as_dict()}
        write_json(run.provenance, facts | provenance())
        return train([learner], stop)


@dataclass(frozen=True)
class Evaluate:
    """Decide, measure and rank every finished cell; write leaderboard, selection and report."""

    experiment: str
    cells: tuple[tuple[str, str, str], ...]  # folder name, identity, name without the seed
    evaluate: str  # EvaluateSpec as JSON
    best_by: str
    packed: str
    split: str
    data_digests: tuple[str, ...]
    reasons: dict[str, str] = field(default_factory=dict)  # why a cell is not whole, where it cannot say

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.experiment import Evaluation, evaluate_experiment
        from pipeline.rundir import ExperimentDir
        from pipeline.spec import EvaluateSpec

        evaluation = Evaluation(
            ExperimentDir(Path(self.experiment)),
            tuple((name, identity, group) for name, identity, group in self.cells),
            EvaluateSpec.model_validate_json(self.evaluate),
            tuple(self.data_digests),
        )
        evaluate_experiment(
            evaluation,
            best_by=self.best_by,
            packed_dir=Path(self.packed),
            split_file=Path(self.split),
            reasons=self.reasons,
        )
        return 0


@dataclass(frozen=True)
class Predict:
    """Score the test images under the selected cell's best checkpoint."""

    run: str
    packed: str
    split: str | None  # where the test rows are part of the split
    device: str

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.prediction import predict
        from pipeline.rundir import RunDir

        split = Path(self.split) if self.split else None
        predict(RunDir(Path(self.run)), Path(self.packed), split, device=self.device)
        return 0


@dataclass(frozen=True)
class Submit:
    """Predict with the selected cell where that is missing, and write the checked submission."""

    experiment: str
    cell: str | None  # None: the selected one, known only when this runs
    tests: dict[
        str, tuple[str, str | None]
    ]  # cell -> packed test images and, where it has the rows, the split
    device: str
    threshold: float | str

    def __call__(self) -> int:
        """Exit status."""
        from pipeline.experiment import selected_cell
        from pipeline.prediction import predict
        from pipeline.rundir import ExperimentDir, RunDir
        from pipeline.submission import is_predicted, make_submission

        experiment = ExperimentDir(Path(self.experiment))
        run = RunDir(experiment.path / self.cell) if self.cell else selected_cell(experiment)
        packed, split = (Path(part) if part else None for part in self.tests[run.name])
        assert packed is not None
        if not is_predicted(run, packed, split):
            predict(run, packed, split, device=self.device)
        result = make_submission(experiment, run, packed, split, threshold=self.threshold)
        ledger.append(experiment.ledger, "submission", cell=run.name, test=result.test_metrics)
        print(f"submission: {shown(experiment.submission)}\n{result.text}", flush=True)
        return 0


Task = Wrangle | FetchWeights | Train | Evaluate | Predict | Submit
_TASKS = {task.__name__: task for task in (Wrangle, FetchWeights, Train, Evaluate, Predict, Submit)}


def encode(task: Task) -> str:
    """One line of JSON that `main` turns back into the task."""
    return json.dumps({"task": type(task).__name__, "arguments": asdict(task)}) + "\n"


def run_task(task: Task) -> int:
    """Run it here; a PipelineError becomes one line and an exit status."""
    from pipeline.errors import PipelineError

    try:
        return task()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED


def main() -> int:
    """Read a task from standard input and run it."""
    # a stage that is stopped still tidies up after itself; a training cell saves instead
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))
    message = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_writer, daemon=True).start()
    return run_task(_TASKS[message["task"]](**message["arguments"]))


def _stop_with_writer() -> None:
    sys.stdin.read()  # returns when the other end is closed, also by a SIGKILL of its process
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
