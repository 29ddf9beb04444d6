"""The local backend: each stage and cell a process with its own log, as many at once as there is room for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from jobs.local.endings import Mark, cell_ending, death_reason, record_failure, stage_ending
from jobs.local.progress import Progress
from jobs.local.ranks import Environment, Ranks, meeting_of, rank_environments, start_rank
from jobs.local.slots import Slots
from jobs.stages import (
    EXIT_DEVICE_FAILED,
    EXIT_FAILED,
    EXIT_RANK_LOST,
    EXIT_STOPPED,
    Task,
    TrainTask,
    encode,
)
from jobs.stages.reports import Reports
from pipeline.errors import LaunchError
from pipeline.storage.run_dir import rank_log

_POLL_S = 0.1
_MARKS = {0: "ok", EXIT_STOPPED: "...."}  # what is not marked so has failed

ENVIRONMENT = {  # of every process that runs a stage
    # glibc gives every large tensor back to the kernel, and the page faults cost more than small steps do
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    # with 64 MiB, what a heap of glibc's threads may have at most, a step of ResNet18 took a fifth more memory
    "MALLOC_TOP_PAD_": "16777216",
    # a thread that spins for another one which has no core right now takes the core it waits for; one that
    # sleeps at once is late where the other has one: microseconds are spun, then it sleeps
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "5000",
}


@dataclass(frozen=True)
class Job:
    """One process to run: a name for people, the task, its log, and the metrics file to watch if any.

    A process that trains several cells has the job each would be alone as its `parts`.
    """

    name: str
    task: Task
    log: Path
    watch: Path | None = None
    parts: tuple[Job, ...] = ()

    @property
    def reported(self) -> tuple[Job, ...]:
        """The jobs people know: its parts, or itself."""
        return self.parts or (self,)

    @property
    def watched(self) -> dict[str, Path | None]:
        """Their names, and the metrics of each."""
        return {part.name: part.watch for part in self.reported}


@dataclass
class Outcome:
    """How the jobs ended: exit status by name; negative is the signal that killed it."""

    status: dict[str, int] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)  # the same for people
    stopped: bool = False  # by Ctrl-C or SIGTERM

    @property
    def failed(self) -> list[str]:
        """Names of the jobs that ended badly, in order."""
        return [name for name, status in self.status.items() if status != 0]

    def end(self, endings: Iterable[tuple[str, int, str]], progress: Progress) -> None:
        """Jobs ended: (name, exit status, words) of each."""
        for name, status, words in endings:
            self.status[name], self.words[name] = status, words
            progress.ended(name, words, _MARKS.get(status, "FAIL"))


def run_jobs(
    jobs: Sequence[Job],
    slots: Slots,
    progress: Progress,
    *,
    code: Path | None = None,
    stop: Stop | None = None,
    early: Sequence[Process] = (),
) -> Outcome:
    """Run every job, at most `slots.count` at once; one that fails does not stop the others.

    The processes import from `code` (a snapshot; default: where this file is); those of the first jobs
    may have been started `early`. Ctrl-C or SIGTERM, or what `stop` listens to, lets what runs save and
    end, and starts no more.
    """
    outcome = Outcome()
    stop = stop or Stop()
    waiting = list(jobs)
    started = {process.job.name: process for process in early}
    running: dict[str, Process] = {}
    free = slots.places
    with stop.listening():
        while waiting or running:
            while waiting and free and not stop.count:
                job, gpu = waiting.pop(0), free.pop(0)
                progress.started(job.name, job.watched)
                try:
                    child = started.get(job.name) or Process(job, gpu, slots, code)
                except LaunchError as error:
                    free.append(gpu)
                    outcome.end(_never_started(job, str(error)), progress)
                    continue
                running[job.name] = child
                progress.follow(job.name, child.reports.read)
                child.begin()
            for name, child in list(running.items()):
                status = child.ranks.poll()
                if status is not None:
                    child.close()
                    if status != EXIT_DEVICE_FAILED:  # what began there next would fail likewise
                        free.append(child.gpu)
                    del running[name]
                    outcome.end(child.endings(status, stopped=stop.count > 0), progress)
            if not free and not running:
                _leave(waiting, outcome, progress)
            if stop.count:
                waiting.clear()
                outcome.stopped = True
                stop.pass_on(running.values())
            progress.tick([len(job.reported) for job in waiting])
            time.sleep(_POLL_S)
    return outcome


@contextlib.contextmanager
def started_early(jobs: Sequence[Job], slots: Slots, code: Path) -> Iterator[list[Process]]:
    """Processes of the jobs that `run_jobs` will start first: they import while other work is done.

    Those that were given no task by the end are gone again, and the folders they made.
    """
    early: list[Process] = []
    try:
        for job, gpu in zip(jobs, slots.places, strict=False):
            with contextlib.suppress(LaunchError):  # `run_jobs` tries again, and says it
                early.append(Process(job, gpu, slots, code))
        yield early
    finally:
        for process in early:
            process.discard()


class Process:
    """A process of its own for a job: it imports what that needs, and begins once it is given the task."""

    def __init__(self, job: Job, gpu: str | None, slots: Slots, code: Path | None) -> None:
        self.job, self.gpu, self.begun = job, gpu, False
        root = str(code or Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        shared: Environment = {
            **ENVIRONMENT,
            **os.environ,
            "OMP_NUM_THREADS": str(slots.threads),
            "PYTHONPATH": path,
        }
        environments = [shared | own for own in rank_environments(job.task, gpu, slots)]
        logs = [part.log for part in job.reported]
        self._new = [log for log in logs if not log.parent.exists()]
        try:
            self.marks = [Mark.of(log) for log in logs]
            for log in logs:
                log.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as if_it_fails:
                self.reports = if_it_fails.enter_context(Reports())
                started: list[subprocess.Popen[bytes]] = []
                if_it_fails.callback(Ranks.kill, started)
                outputs = [rank_log(job.log, slots.first_rank + i) for i in range(len(environments))]
                for environment, output in zip(environments, outputs, strict=True):
                    reports = None if started else self.reports.descriptor
                    started.append(start_rank(job.task, environment, output, reports))
                self.ranks = Ranks(
                    started, outputs, meeting_of(job.task, environments[0]), leads=not slots.first_rank
                )
                self.reports.given()
                if_it_fails.pop_all()
        except OSError as error:
            raise LaunchError(
                f"its process or its log {job.log} cannot be opened: {error}; "
                "see to free memory and disk space, then run the same command"
            ) from error

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The only one, or the first of a cell's several ones."""
        return self.ranks.processes[0]

    def begin(self) -> None:
        """Give it the task."""
        self.begun = True
        for process in self.ranks.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status tells
                process.stdin.write(encode(self.job.task).encode())
                process.stdin.flush()  # and stays open: when we die, it notices

    def endings(self, status: int, *, stopped: bool) -> Iterator[tuple[str, int, str]]:
        """(name, exit status, words) of each of its jobs, once it has ended; its last words are in the first's log."""
        reason = self.ranks.first_bad or death_reason(status, self.job.log, self.marks[0].log_bytes)
        for part, mark in zip(self.job.reported, self.marks, strict=True):
            task = part.task
            if isinstance(task, TrainTask):
                if not self.ranks.leads:  # the node of the first process says it
                    yield part.name, status, stage_ending(status, part.log, mark.log_bytes)
                    continue
                if status == EXIT_RANK_LOST and self.process.returncode < 0 and not stopped:
                    self.ranks.record_loss(task)
                ending = cell_ending(
                    task.run, task.identity, status, mark=mark, reason=reason, stopped=stopped
                )
            else:
                # a stage that was stopped while it still imported dies of our signal; of several processes, one
                # that waits for another hears of its end before its own signal
                ended = EXIT_STOPPED if stopped and (status < 0 or status == EXIT_RANK_LOST) else status
                words = stage_ending(ended, part.log, mark.log_bytes)
                ending = ended, reason if ended == EXIT_RANK_LOST else words
            yield part.name, *ending

    def close(self) -> None:
        """Let go of one that has ended."""
        self.reports.close()
        for process in self.ranks.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def discard(self) -> None:
        """End one that has not begun, and take the folders away that it made and nobody else uses."""
        if self.begun:
            return
        Ranks.kill(self.ranks.processes)
        self.close()
        for log in self._new:
            with contextlib.suppress(OSError):  # gone already
                if {*log.parent.iterdir()} <= {log, *self.ranks.logs} and (
                    not log.exists() or not log.stat().st_size
                ):
                    for each in {log, *self.ranks.logs}:
                        each.unlink(missing_ok=True)
                    log.parent.rmdir()


class Stop:
    """Counts stop signals and passes them on: first to save and end, then to end at once.

    `insist=False`: however often the signal comes, children have `grace_s` to save.
    """

    def __init__(
        self,
        numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        *,
        grace_s: float = 30.0,
        insist: bool = True,
    ) -> None:
        self.numbers, self.grace_s, self.insist = numbers, grace_s, insist
        self.count = 0
        self._passed_on = 0
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.count += 1

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen; the handlers before are put back afterwards."""
        before = {number: signal.signal(number, self) for number in self.numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def pass_on(self, running: Iterable[Process]) -> None:
        """Send what is due to the children."""
        late = self._passed_on == 1 and time.monotonic() - self._since > self.grace_s
        if self._passed_on < min(self.count, 2 if self.insist else 1) or late:
            self._passed_on += 1
            self._since = time.monotonic()
            number = signal.SIGTERM if self._passed_on == 1 else signal.SIGKILL
            for child in running:
                child.ranks.send(number)


def _leave(waiting: list[Job], outcome: Outcome, progress: Progress) -> None:
    """These do not begin here: every GPU has failed."""
    while waiting:
        job = waiting.pop(0)
        progress.started(job.name, job.watched)
        words = "not begun: the GPU failed under another cell"
        outcome.end([(part.name, EXIT_DEVICE_FAILED, words) for part in job.reported], progress)


def _never_started(job: Job, reason: str) -> Iterator[tuple[str, int, str]]:
    """(name, exit status, words) of each of its jobs."""
    for part in job.reported:
        if isinstance(part.task, TrainTask):
            record_failure(part.task.run, part.task.identity, reason)
        yield part.name, EXIT_FAILED, reason
