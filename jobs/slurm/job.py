"""What runs inside a Slurm job: small picklable callables that submitit starts from the frozen code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.clusters.profile import Profile
from jobs.local.endings import record_failure
from jobs.local.gpus import usable_gpus
from jobs.local.processes import Job, Stop, run_jobs
from jobs.local.progress import Progress
from jobs.local.slots import Slots
from jobs.local.train_groups import group_process, group_tasks
from jobs.slurm.continuations import release
from jobs.slurm.costs import record_costs
from jobs.slurm.queue import reasons
from jobs.slurm.stage_in import stage_in
from jobs.slurm.status import last_jobs
from jobs.stages import (
    EXIT_DEVICE_FAILED,
    EXIT_RANK_LOST,
    EXIT_STOPPED,
    EvaluateTask,
    SubmissionTask,
    Task,
    TrainTask,
    run_task,
)
from pipeline.data.layout import FEATURES
from pipeline.errors import LaunchError
from pipeline.storage.files import share_with_group
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import RunDir
from pipeline.storage.typed import typed

_KILL_EXPECTED_S = 300.0
_LEDGER_S = 30.0  # that the ledger may come after the job it speaks of

# Shell lines of every job. A signal that comes before Python can handle it waits, instead of ending the job; and
# the shell puts the job back into the queue where the job's own Python cannot (a container without Slurm).
SETUP = (
    "export LABELGRID_BEGAN=$(date +%s)",
    "trap : USR2",
    'LABELGRID_HOLD=$(env --block-signal=USR2 true 2>/dev/null && echo "env --block-signal=USR2")',
    'export LABELGRID_REQUEUE="$PWD/.requeue-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}-${SLURM_ARRAY_TASK_ID:-}"',
    """trap 'status=$?; if [ -e "$LABELGRID_REQUEUE" ]; then rm -f "$LABELGRID_REQUEUE"; status=1; """
    """for s in 0 2 5 10 20; do sleep $s; scontrol requeue "$SLURM_JOB_ID" && status=0 && break; done; """
    """fi; exit $status' EXIT""",
)
HOLD = "$LABELGRID_HOLD"


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
    requeue: bool  # False: continuation jobs are queued already
    grace_s: float  # what a cell has to save
    limit_s: float = 0.0  # the time limit; 0: none
    warning_s: float = 0.0  # how long before it the warning comes
    max_restarts: int = 50  # how often the job may go back into the queue
    ranks: int = 1  # processes of a cell on a node
    nodes: int = 1  # of a cell: this runs on each of them, and starts its part of every cell

    @property
    def gpus(self) -> int:
        """Of a cell."""
        return self.ranks * self.nodes

    @property
    def node(self) -> int:
        """Which of the nodes this is; what concerns the whole job is done on node 0."""
        return int(os.environ.get("SLURM_PROCID") or 0) if self.nodes > 1 else 0

    def __call__(self) -> None:
        """Raises CellsFailedError when a cell failed; the others were still finished."""
        share_with_group(self.tasks[0].run.path)
        if all(task.run.why_not_done(task.identity) is None for task in self.tasks):
            release()
            return  # a continuation with nothing left to do
        if self.node:
            self._take_part()
            return
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's: pickle, `scontrol requeue`, exit
        requeue = _requeueing(requeue, self.max_restarts) if self.requeue else _leave_to_continuation
        signal.signal(signal.SIGUSR2, requeue)
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, {signal.SIGUSR2}
        )  # one that came during the start acts now
        timer = _warn_at(self.limit_s - self.warning_s / 2 if self.limit_s else 0.0)
        outcome = self._train()
        timer.cancel()
        again = {EXIT_DEVICE_FAILED, EXIT_RANK_LOST}  # another node's GPU may be whole
        if outcome.stopped or again & {*outcome.status.values()}:
            requeue(signal.SIGUSR2, None)
        if EXIT_STOPPED in outcome.status.values() and not outcome.stopped:
            # SIGTERM reached the cells and not us: Slurm is about to kill this job (scancel, a limit, a
            # preemption without warning); ending by ourselves would look like the end of the work
            time.sleep(_KILL_EXPECTED_S)
        if outcome.failed:
            raise CellsFailedError(
                f"{len(outcome.failed)} of {len(self.tasks)} cells: {', '.join(outcome.failed)}"
            )
        release()

    def _take_part(self) -> None:
        """This node's processes of every cell; how cells end, and whether the job comes again, node 0 says."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        self._train()

    def _train(self) -> Any:
        gpus = self._gpus()
        packed = {task.packed: stage_in(task.packed, self.scratch) for task in self.tasks}
        # features are kept for later jobs, of any node
        tasks = [
            replace(task, packed=packed[task.packed], features=task.features or task.packed / FEATURES)
            for task in self.tasks
        ]
        alone = [(task,) for task in tasks]
        groups = alone if self.gpus > 1 else group_tasks(tasks, -(-len(tasks) // self.concurrent_cells))
        threads = max(1, self.cores // (self.concurrent_cells * self.ranks))
        word = f"{os.environ.get('SLURM_JOB_ID')}-{os.environ.get('SLURM_RESTART_COUNT') or 0}"
        at_once = min(self.concurrent_cells, len(groups))
        slots = Slots(at_once, threads, gpus, self.ranks, self.node * self.ranks, word)
        jobs = [group_process([Job(task.run.name, task, task.run.log) for task in group]) for group in groups]
        stop = Stop((signal.SIGUSR2,), grace_s=self.grace_s, insist=False)
        return run_jobs(jobs, slots, Progress("cells", len(tasks)), stop=stop)

    def _gpus(self) -> tuple[str, ...]:
        try:
            gpus = usable_gpus(self.device)
            if gpus and len(gpus) < self.ranks:
                raise LaunchError(
                    f"run.gpus_per_cell: {self.gpus} over {self.nodes} nodes: this node has {len(gpus)} GPUs, not "
                    f"{self.ranks}; see `{typed('plan')}` for what its jobs ask for"
                )
            return gpus
        except LaunchError as error:
            for task in self.tasks if self.node == 0 else ():
                reason = task.run.why_not_done(task.identity)
                if reason is not None and not reason.startswith("diverged: "):
                    record_failure(task.run, task.identity, str(error))
            raise CellsFailedError(str(error)) from error

    def checkpoint(self) -> Any:
        """What submitit starts again: the same cells; those that are complete end at once."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _warn_at(seconds: float) -> threading.Timer:
    """Warn this job itself, so many seconds after it began: Slurm's warning is lost where it comes before the step.

    0: never.
    """
    began = float(os.environ.get("LABELGRID_BEGAN") or time.time())
    timer = threading.Timer(
        max(0.0, began + seconds - time.time()), lambda: os.kill(os.getpid(), signal.SIGUSR2)
    )
    timer.daemon = True
    if seconds:
        timer.start()
    return timer


def _requeueing(by_submitit: Any, max_restarts: int) -> Callable[[int, Any], None]:
    """submitit's handler, or the shell's way where that cannot do it: no scontrol here, or no answer for the moment."""

    def act(number: int, frame: Any) -> None:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGUSR2}
        )  # once is enough: a second one would cut in
        if callable(by_submitit) and shutil.which("scontrol"):
            try:
                by_submitit(number, frame)
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"scontrol requeue: {error}", file=sys.stderr, flush=True)
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) >= max_restarts:
            print(f"stopped; it was requeued {max_restarts} times already (cluster.max_timeouts)", flush=True)
            sys.exit(1)
        _requeue_by_shell()

    return act


def _requeue_by_shell() -> None:
    """Have the job's shell put it back into the queue, as Slurm's commands are not to be found in here."""
    if place := os.environ.get("LABELGRID_REQUEUE"):
        Path(place).touch()
        print("stopped; the job's shell puts it back into the queue", flush=True)
    else:
        print(
            f"stopped; no scontrol here: `{typed('grid')}` goes on with the cells",
            file=sys.stderr,
            flush=True,
        )
    sys.exit(0)


def _leave_to_continuation(number: int, frame: Any) -> None:
    print("stopped; the continuation job goes on", flush=True)
    sys.exit(0)


@dataclass(frozen=True)
class FinalJob:
    """Evaluate what the cells left, and perhaps predict and submit; runs after every cell has ended.

    Slurm is asked why cells ended that could not say it, and what they cost. The leaderboard needs neither.
    """

    evaluate: EvaluateTask
    submission: SubmissionTask | None = None
    profile: Profile | None = None  # for prices
    ranks: int = 1  # processes that share the test images, where there are as many GPUs

    def __call__(self) -> None:
        """Raises CellsFailedError when a stage failed."""
        inputs = self.evaluate.inputs
        share_with_group(inputs.experiment.path)
        events = _ledger_with(inputs.experiment.ledger, os.environ.get("SLURM_JOB_ID"))
        unfinished = {
            name: identity
            for name, identity in inputs.cells
            if RunDir(inputs.experiment.path / name).manifest_state(identity) in ("new", "started")
        }
        asked = {cell: job for cell, job in last_jobs(events).items() if cell in unfinished}
        known = reasons(asked, inputs.experiment.slurm, wait_s=20)
        for name in known.keys() & unfinished.keys():
            # a job that failed before its cells began: nobody else writes down why
            record_failure(RunDir(inputs.experiment.path / name), unfinished[name], known[name])
        if self.profile is not None:
            record_costs(inputs.experiment, self.profile)
        StageJob((replace(self.evaluate, reasons=known),))()
        if self.submission is not None:
            self._predict(self.submission)
            StageJob((self.submission,))()

    def _predict(self, submission: SubmissionTask) -> None:
        """By several processes; a single one is this one, once the submission asks for its scores."""
        slots = Slots.for_stage(None, submission.device, ranks=self.ranks)
        task = submission.prediction() if slots.ranks > 1 else None
        if task is not None:
            log = submission.experiment.logs / "predict.txt"
            job = Job("predict", replace(task, ranks=slots.ranks), log)
            outcome = run_jobs([job], slots, Progress("stages", 1), stop=Stop(()))
            if outcome.failed:
                raise CellsFailedError(f"predict: {outcome.words['predict']}")


def _ledger_with(path: Path, job: str | None) -> list[dict[str, Any]]:
    """The lines of the ledger, once this job is among them."""
    deadline = time.monotonic() + _LEDGER_S
    while True:
        events = read_jsonl(path)
        if job is None or any(job in event.get("jobs", ()) for event in events):
            return events
        if time.monotonic() > deadline:
            return events
        time.sleep(0.5)
