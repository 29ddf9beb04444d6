"""The stage that trains: one cell, or several that share a stream of batches in one process."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.stages.exit_status import EXIT_FAILED, EXIT_STOPPED
from pipeline.spec import Spec
from pipeline.storage.run_dir import RunDir


@dataclass(frozen=True)
class TrainTask:
    """Train one cell from wherever it stands to its complete artifacts."""

    run: RunDir
    spec: Spec  # resolved: what is queued is what was planned, whatever happens to files
    identity: str
    packed: Path
    split: Path
    weights_folder: Path

    stream: str = ""  # cells with an equal one can share batches; "": with none

    def __call__(self) -> int:
        """Exit status."""
        return TrainGroupTask((self,))()


@dataclass(frozen=True)
class TrainGroupTask:
    """Train cells that share a stream of batches in one process, each exactly as if alone."""

    cells: tuple[TrainTask, ...]

    def __call__(self) -> int:
        """Exit status: the worst of them."""
        from pipeline.training.stop_signal import StopFlag

        stop = StopFlag().install()
        with contextlib.ExitStack() as owned:
            attempts = [(t, a) for t in self.cells if (a := self._start(t, owned)) is not None]
            self._train(attempts, stop)
        if any(not attempt.is_done and attempt.error is None for _, attempt in attempts):
            return EXIT_STOPPED
        return EXIT_FAILED if any(attempt.error is not None for _, attempt in attempts) else 0

    def _start(self, task: TrainTask, owned: contextlib.ExitStack) -> Any:
        """An attempt, its folder owned and its manifest `started`; None where the cell is complete already."""
        from pipeline.errors import DivergedError, PipelineError
        from pipeline.training.attempt import Attempt

        run = task.run
        attempt = Attempt(run, task.identity, run.log if len(self.cells) > 1 else None)
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
                spec = task.spec
                with atomic_write(attempt.run.spec, "w") as file:
                    file.write(dump(spec))
                if data is None:
                    split = read_split(task.split)
                    data = CellData(PackedSet.open(task.packed), split.train, split.validation)
                weights = fetch_weights(spec.train.model, task.weights_folder)
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
