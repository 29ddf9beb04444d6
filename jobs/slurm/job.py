"""What runs inside a Slurm job: small picklable callables that submitit starts from the frozen code."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.local.endings import record_failure
from jobs.local.processes import Job, Stop, run_jobs
from jobs.local.progress import Progress
from jobs.local.slots import Slots, visible_gpus
from jobs.local.train_groups import group_process, group_tasks
from jobs.slurm.queue import reasons
from jobs.stages import EXIT_STOPPED, EvaluateTask, SubmissionTask, Task, TrainTask, run_task
from pipeline.data.layout import is_complete, read_dataset
from pipeline.storage.run_dir import RunDir

_KILL_EXPECTED_S = 300.0


class CellsFailedError(Exception):
    """Some cells of the job failed; what each said is in its log and manifest."""


@dataclass(frozen=True)
class StageJob:
    """Stages one after another in one job, each after the success of the one before."""

    tasks: tuple[Task, ...]

    def __call__(self) -> None:
        """Raises CellsFailedError naming the stage, so that dependent jobs do not start."""
        for task in self.tasks:
            status = run_task(task)
            if status:
                raise CellsFailedError(
                    f"{type(task).__name__} ended with status {status}; its error is above"
                )


@dataclass(frozen=True)
class CellJob:
    """Cells in one allocation, some side by side and the rest after them, each a process with its own log.

    At the warning before the time limit or at a preemption (USR2) every running cell saves and ends, and
    the job is handed to submitit's requeue; it then goes on with what is left, as often as needed.
    """

    tasks: tuple[TrainTask, ...]
    concurrent_cells: int
    cores: int
    device: str
    scratch: tuple[str, ...]
    requeue: bool  # False: a continuation job is queued already
    grace_s: float  # what a cell has to save

    def __call__(self) -> None:
        """Raises CellsFailedError when a cell failed; the others were still finished."""
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: pickle, `scontrol requeue`, exit
        packed = {task.packed: stage_in(task.packed, self.scratch) for task in self.tasks}
        gpus = () if self.device == "cpu" else visible_gpus()
        slots = Slots(
            count=self.concurrent_cells, threads=max(1, self.cores // self.concurrent_cells), gpus=gpus
        )
        tasks = [replace(task, packed=packed[task.packed]) for task in self.tasks]
        groups = group_tasks(tasks, -(-len(tasks) // self.concurrent_cells))
        jobs = [group_process([Job(task.run.name, task, task.run.log) for task in group]) for group in groups]
        stop = Stop((signal.SIGUSR2,), grace_s=self.grace_s, insist=False)
        outcome = run_jobs(jobs, slots, Progress("cells", len(tasks)), stop=stop)
        if outcome.stopped and self.requeue and callable(requeue):
            requeue(signal.SIGUSR2, None)
        if EXIT_STOPPED in outcome.status.values() and not outcome.stopped:
            # SIGTERM reached the cells and not us: Slurm is about to kill this job (scancel, a limit, a
            # preemption without warning); ending by ourselves would look like the end of the work
            time.sleep(_KILL_EXPECTED_S)
        if outcome.failed:
            raise CellsFailedError(
                f"{len(outcome.failed)} of {len(self.tasks)} cells: {', '.join(outcome.failed)}"
            )

    def checkpoint(self) -> Any:
        """What submitit starts again: the same cells; those that are complete end at once."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def stage_in(packed: Path, scratch: Sequence[str]) -> Path:
    """The packed set on the node's own disk, copied once per node; the shared one where there is no room."""
    place = next((os.path.expandvars(name) for name in scratch if os.environ.get(name.lstrip("$"))), None)
    if place is None:
        return packed
    folder = Path(place) / "labelgrid"
    target = folder / packed.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{packed.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other jobs of this node wait for the one copy
            dataset = read_dataset(packed)
            if dataset is None or not is_complete(target, dataset["digest"]):  # or a purge has thinned it out
                shutil.rmtree(target, ignore_errors=True)
                size = sum(path.stat().st_size for path in packed.iterdir())
                if shutil.disk_usage(folder).free < 1.2 * size:
                    print(f"{folder}: no room for {size / 1e9:.1f} GB; reading {packed}", flush=True)
                    return packed
                started = time.monotonic()
                temporary = folder / f".{packed.name}.{os.getpid()}"
                shutil.copytree(packed, temporary)
                temporary.rename(target)
                print(
                    f"staged {size / 1e9:.2f} GB to {target} in {time.monotonic() - started:.1f} s",
                    flush=True,
                )
    except OSError as error:
        print(f"{folder}: cannot hold the data ({error}); reading {packed}", file=sys.stderr, flush=True)
        return packed
    return target


@dataclass(frozen=True)
class FinalJob:
    """Evaluate what the cells left, and perhaps predict and submit; runs after every cell has ended."""

    evaluate: EvaluateTask
    cell_jobs: tuple[tuple[str, str], ...]  # (cell, its job), to ask Slurm about cells that could not say
    submission: SubmissionTask | None = None

    def __call__(self) -> None:
        """Raises CellsFailedError when a stage failed."""
        inputs = self.evaluate.inputs
        known = reasons(dict(self.cell_jobs), inputs.experiment.slurm, wait_s=20)
        for name, identity in inputs.cells:
            run = RunDir(inputs.experiment.path / name)
            # a job that failed before its cells began: nobody else writes down why
            if name in known and run.manifest_state(identity) in ("new", "started"):
                record_failure(run, identity, known[name])
        evaluate = replace(self.evaluate, reasons=known)
        StageJob((evaluate, self.submission) if self.submission else (evaluate,))()
