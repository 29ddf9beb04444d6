"""The local backend: each stage and cell a process with its own log, as many at once as there is room for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from jobs.local.progress import Progress
from jobs.stages import EXIT_FAILED, EXIT_STOPPED, Task, TrainTask, encode, needed
from pipeline.errors import LaunchError
from pipeline.storage.host import cores
from pipeline.storage.run_dir import RunDir

_POLL_S = 0.1

ENVIRONMENT = {  # of every process that runs a stage
    # glibc gives every large tensor back to the kernel, and the page faults cost more than small steps do
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_TOP_PAD_": "67108864",
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
    epochs: int = 0
    parts: tuple[Job, ...] = ()

    @property
    def reported(self) -> tuple[Job, ...]:
        """The jobs people know: its parts, or itself."""
        return self.parts or (self,)

    def status_of(self, part: Job, status: int) -> int:
        """Of a part, once this process has ended with `status`: what its manifest says."""
        if not self.parts or not isinstance(part.task, TrainTask):
            return status
        state = RunDir(Path(part.task.run)).manifest_state(part.task.identity)
        return {"done": 0, "failed": EXIT_FAILED, "diverged": EXIT_FAILED}.get(state, status)


@dataclass
class Outcome:
    """How the jobs ended: exit status by name; negative is the signal that killed it."""

    status: dict[str, int] = field(default_factory=dict)
    stopped: bool = False  # by Ctrl-C or SIGTERM

    @property
    def failed(self) -> list[str]:
        """Names of the jobs that ended badly, in order."""
        return [name for name, status in self.status.items() if status != 0]


@dataclass(frozen=True)
class Slots:
    """How many jobs run at once, with how many threads each, on which GPUs."""

    count: int
    threads: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def for_cells(cls, cells: int, parallel: int | None, threads: int | None, device: str) -> Slots:
        """As many cells at once as there are GPUs, else cores; the cores are shared out evenly.

        `cells` is the size of the whole grid, not of what is missing: a cell trained later alone
        gets the same number of threads, and so the same bits.
        """
        usable = cores()
        gpus = () if device == "cpu" else visible_gpus()
        count = parallel or len(gpus) or max(1, min(cells, usable))
        return cls(count=count, threads=threads or max(1, usable // count), gpus=gpus)

    @property
    def places(self) -> list[str | None]:
        """The GPU of each job that runs at once; None without."""
        return [self.gpus[i % len(self.gpus)] if self.gpus else None for i in range(self.count)]


def visible_gpus() -> tuple[str, ...]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part for part in named.split(",") if part and part != "-1")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(i) for i in range(len(gpus))) if listed.returncode == 0 else ()


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
                child = started.get(job.name) or Process(job, gpu, slots.threads, code)
                running[job.name] = child
                child.begin()
                for part in job.reported:
                    progress.started(part.name, part.watch, part.epochs)
            for name, child in list(running.items()):
                status = child.process.poll()
                if status is not None:
                    child.close()
                    free.append(child.gpu)
                    del running[name]
                    for part, start in zip(child.job.reported, child.log_starts, strict=True):
                        own = outcome.status[part.name] = child.job.status_of(part, status)
                        progress.ended(part.name, _ending(own, part.log, start), ok=own == 0)
            if stop.count:
                waiting.clear()
                outcome.stopped = True
                stop.pass_on(running.values())
            progress.tick()
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
            early.append(Process(job, gpu, slots.threads, code))
        yield early
    finally:
        for process in early:
            process.discard()


class Process:
    """A process of its own for a job: it imports what that needs, and begins once it is given the task."""

    def __init__(self, job: Job, gpu: str | None, threads: int, code: Path | None) -> None:
        self.job, self.gpu, self.begun = job, gpu, False
        environment = {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        root = str(code or Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        logs = [part.log for part in job.reported]
        self._new = [log for log in logs if not log.parent.exists()]
        try:
            # what earlier attempts said is not a reason of this one
            self.log_starts = [log.stat().st_size if log.exists() else 0 for log in logs]
            for log in logs:
                log.parent.mkdir(parents=True, exist_ok=True)
            self.log: IO[bytes] = job.log.open("ab")
            # a session of its own: Ctrl-C in the terminal reaches only us, and we pass it on in order
            self.process = subprocess.Popen(
                # -P: not from the current folder
                [sys.executable, "-u", "-P", "-m", "jobs.stages", *needed(job.task)],
                stdin=subprocess.PIPE,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            raise LaunchError(f"{job.name}: cannot be started with its log {job.log}: {error}") from error

    def begin(self) -> None:
        """Give it the task."""
        self.begun = True
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status tells
            self.process.stdin.write(encode(self.job.task).encode())
            self.process.stdin.flush()  # and stays open: when we die, it notices

    def close(self) -> None:
        """Let go of one that has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.log.close()

    def discard(self) -> None:
        """End one that has not begun, and take the folders away that it made and nobody else uses."""
        if self.begun:
            return
        self.process.kill()
        self.process.wait()
        self.close()
        for log in self._new:
            with contextlib.suppress(OSError):  # gone already
                if {*log.parent.iterdir()} <= {log} and (not log.exists() or not log.stat().st_size):
                    log.unlink(missing_ok=True)
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
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, number)


def mark_killed(task: TrainTask, status: int | None) -> None:
    """Into the manifest, when a cell's process could not say itself why it died."""
    run = RunDir(Path(task.run))
    if status is not None and status < 0 and run.manifest_state(task.identity) == "started":
        run.write_manifest(task.identity, "failed", error=f"killed by {signal.Signals(-status).name}")


def _ending(status: int, log: Path, start: int) -> str:
    if status == 0:
        return "done"
    if status == EXIT_STOPPED:
        return "stopped, saved"
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return last_error(log, start) or f"exit status {status}"


def last_error(log: Path, start: int = 0) -> str | None:
    """The last line of a log (from byte `start` on) that says something, for a one-line reason."""
    try:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return None
    errors = [line for line in lines if line.startswith("error: ")]
    texts = [line.strip() for line in lines if line.strip()]
    return errors[-1].removeprefix("error: ") if errors else (texts[-1] if texts else None)
