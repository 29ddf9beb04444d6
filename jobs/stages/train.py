"""The stage that trains: one cell, or several that share a stream of batches in one process."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.stages.exit_status import EXIT_DEVICE_FAILED, EXIT_FAILED, EXIT_RANK_LOST, EXIT_STOPPED
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
    features: Path | None = (
        None  # the folder of kept features, where `packed` is a node's copy; None: in `packed`
    )
    code: Path | None = None  # the frozen copy of the user's own code; None: it has none
    weights_digest: str = ""  # of a file of weights, which is not frozen; "": of none

    def __call__(self) -> int:
        """Exit status."""
        return TrainGroupTask((self,))()

    @property
    def ranks(self) -> int:
        """How many processes train it."""
        return self.spec.run.gpus_per_cell


@dataclass(frozen=True)
class TrainGroupTask:
    """Train cells that share a stream of batches in one process, each exactly as if alone."""

    cells: tuple[TrainTask, ...]

    def __call__(self) -> int:
        """Exit status: the worst of them."""
        from pipeline.training.stop_signal import StopFlag

        stop = StopFlag().install()
        if self.cells[0].ranks > 1:
            (task,) = self.cells
            return self._by_ranks(task, stop)
        with contextlib.ExitStack() as owned:
            attempts = [(t, a) for t in self.cells if (a := self._start(t, owned)) is not None]
            if not self._train(attempts, stop):
                return EXIT_DEVICE_FAILED
        return _status(attempts)

    def _by_ranks(self, task: TrainTask, stop: Any) -> int:
        """Exit status of this process, one of those that train the cell together."""
        from pipeline.distributed.meeting import join, leave
        from pipeline.errors import LostRankError
        from pipeline.training.attempt import Attempt

        run = task.spec.run
        try:
            group = join(
                task.ranks, task.run.meeting, run.device, nodes=run.nodes_per_cell, stopped=lambda: bool(stop)
            )
        except LostRankError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return EXIT_RANK_LOST
        if group is None:
            return EXIT_STOPPED
        attempt = Attempt(task.run, task.identity, leads=group.leads)
        with contextlib.ExitStack() as owned:
            owned.callback(leave)
            if group.leads:
                attempt = self._start(task, owned)
            try:
                begins = group.from_leader(attempt is not None and attempt.error is None)
            except LostRankError as error:
                attempt.device_failed(error)
                return EXIT_RANK_LOST
            if not begins:  # complete, or another process works on it: that is rank 0's to say
                return 0 if attempt is None or not group.leads else EXIT_FAILED
            if not self._train([(task, attempt)], stop, group):
                return EXIT_RANK_LOST if attempt.lost_rank else EXIT_DEVICE_FAILED
            if attempt.error is not None:
                group.abandon(str(attempt.error))
        return _status([(task, attempt)])

    def _start(self, task: TrainTask, owned: contextlib.ExitStack) -> Any:
        """An attempt, its folder owned and its manifest `started`; None where the cell is complete already."""
        from pipeline.errors import DivergedError, PipelineError, TrainingError
        from pipeline.training.attempt import GPU_FAILED_UNDER, RANKS_LOST, Attempt

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
            too_often = (f"failed: {GPU_FAILED_UNDER}", f"failed: {RANKS_LOST}")
            if reason.startswith(too_often) and os.environ.get("SLURM_RESTART_COUNT"):
                raise TrainingError(
                    reason.removeprefix("failed: ")
                )  # the same: else it would be requeued for ever
            run.write_manifest(task.identity, "started", faults=run.faults(task.identity))
        return attempt

    def _train(self, attempts: list[tuple[TrainTask, Any]], stop: Any, group: Any = None) -> bool:
        """False once the GPU has failed. Cells that found no room beside the others follow when these are done."""
        from pipeline.training.attempt import is_device_fault
        from pipeline.training.loop import train

        data: list[Any] = []  # opened by the first cell that needs it
        try:
            waiting = [(task, attempt) for task, attempt in attempts if attempt.error is None]
            while waiting:
                learners = _build(waiting, data, group)
                try:
                    train(learners, stop)
                finally:
                    _close(learners)
                if stop:
                    break
                ended = [learner.attempt for learner in learners if not learner.postponed]
                waiting = [pair for pair in waiting if pair[1].error is None and pair[1] not in ended]
        except Exception as error:  # noqa: BLE001 - of what they share: the GPU, the data, the validation
            broken = is_device_fault(error)
            for _, attempt in attempts:
                if attempt.error is None and not attempt.is_done:
                    attempt.device_failed(error) if broken else attempt.fail(error)
            return not broken
        return True


def _status(attempts: list[tuple[TrainTask, Any]]) -> int:
    if any(not attempt.is_done and attempt.error is None for _, attempt in attempts):
        return EXIT_STOPPED
    return EXIT_FAILED if any(attempt.error is not None for _, attempt in attempts) else 0


def _close(learners: list[Any]) -> None:
    """Let what is being written of each end while its folder is owned, and close its files."""
    for learner in learners:
        with learner.attempt.isolated():
            learner.writer.wait()
        with contextlib.suppress(OSError):  # what a full disk did to a cell is in its manifest
            learner.tracker.close()


def _build(waiting: list[tuple[TrainTask, Any]], data: list[Any], group: Any) -> list[Any]:
    """The learners of the cells that find room, the first of them in any case; data is put into `data`.

    `group`: the processes that train the cell together; None: this one alone.
    """
    import torch

    from pipeline.data.packed import PackedSet
    from pipeline.data.splits import read_split
    from pipeline.distributed.group import SOLO
    from pipeline.errors import CheckpointError
    from pipeline.models.hardware import hardware
    from pipeline.models.weights import fetch_weights, weights_facts
    from pipeline.own.source import digest_of_zip, kept_copy
    from pipeline.progress import report
    from pipeline.spec.reading import dump
    from pipeline.storage.files import atomic_write, sha256_file, write_json
    from pipeline.storage.provenance import provenance
    from pipeline.training.learner import CellData, Learner

    learners: list[Any] = []
    group = group or SOLO
    for task, attempt in waiting:
        with attempt.isolated():
            if group.leads:
                with atomic_write(attempt.run.spec, "w") as file:
                    file.write(dump(task.spec))
            if not data:
                report("reading the packed images")
                split = read_split(task.split)
                packed = PackedSet.open(task.packed)
                data.append(CellData(packed, split.train, split.validation, task.features))
            group.meet("data")  # each node verifies its own
            weights = fetch_weights(task.spec.train.model, task.weights_folder)
            if weights and task.weights_digest and sha256_file(weights) != task.weights_digest:
                raise CheckpointError(
                    f"{weights}: has changed since the cell was planned; run the same command again"
                )
            code = kept_copy(task.code, attempt.run.own_code) if task.code else None
            try:
                learner = Learner(task.spec, attempt, data[0], weights=weights, group=group)
            except torch.OutOfMemoryError:
                if not learners:
                    raise
                print("out of GPU memory beside the other cells: begins when they are done", flush=True)
                continue
            execution = asdict(learner.execution)
            facts = {"identity": task.identity, "data": data[0].packed.digest, "execution": execution}
            facts["hardware"] = hardware(learner.execution.device)
            facts["weights"] = weights_facts(task.spec.train.model, weights)
            facts |= {"own_code": digest_of_zip(code)} if code else {}
            if group.leads:
                write_json(attempt.run.provenance, facts | provenance())
            learners.append(learner)
    return learners
