"""The processes of a cell that several train together, its ranks: what each is told, and how they end as one.

Torch-free.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from jobs.local.endings import death_reason
from jobs.local.gpus import gpu_environment
from jobs.local.slots import Slots
from jobs.stages import (
    EXIT_DEVICE_FAILED,
    EXIT_FAILED,
    EXIT_RANK_LOST,
    EXIT_STOPPED,
    PredictTask,
    Task,
    TrainTask,
    needed_imports,
)
from jobs.stages.reports import REPORTS_TO
from pipeline.errors import LostRankError, PipelineError
from pipeline.storage.files import write_json
from pipeline.storage.run_dir import RunDir
from pipeline.training.attempt import Attempt

Environment = dict[str, str | None]  # None: not set
LOST_S = 60.0  # that the others have to notice that one is gone; then they are killed
RANK, WORD = "LABELGRID_RANK", "LABELGRID_MEETING"  # as `pipeline/distributed/meeting.py` reads them


def rank_environments(task: Task, place: str | None, slots: Slots) -> list[Environment]:
    """What each process of a job is told beside the rest: its GPU of the place; its number, where there are several."""
    if not isinstance(task, TrainTask | PredictTask) or task.ranks == 1:
        return [{} if place is None else gpu_environment(place, slots.sharing(place))]
    word = slots.meeting or uuid.uuid4().hex
    gpus = place.split(",") if place is not None else [None] * slots.ranks
    sharing = 1 if place is None else slots.sharing(place)
    found: list[Environment] = []
    for i, gpu in enumerate(gpus):
        own: Environment = {} if gpu is None else gpu_environment(gpu, sharing)
        found.append({RANK: str(slots.first_rank + i), WORD: word, **own})
    return found


def start_rank(
    task: Task, environment: Environment, log: Path, reports: int | None
) -> subprocess.Popen[bytes]:
    """One process that runs a stage once it is given the task; `reports`: its end of the pipe to its parent."""
    given = {name: value for name, value in environment.items() if value is not None}
    if reports is not None:
        given[REPORTS_TO] = str(reports)
    with log.open("ab") as output:
        # a session of its own: Ctrl-C in the terminal reaches only us, and we pass it on in order
        return subprocess.Popen(
            # -P: not from the current folder
            [sys.executable, "-u", "-P", "-m", "jobs.stages", *needed_imports(task)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=given,
            pass_fds=() if reports is None else (reports,),
        )


def meeting_of(task: Task, environment: Environment) -> tuple[Path, str] | None:
    """(the file over which the processes of a task find each other, their word); None where it is alone."""
    word = environment.get(WORD)
    if not word or not isinstance(task, TrainTask | PredictTask):
        return None
    return (task.run if isinstance(task, TrainTask) else task.experiment).meeting, word


class Ranks:
    """The processes of a job as one: `poll`, `send`, `kill`. The first one's status decides, where it could say it.

    Those that wait at the meeting are told of one that died, on other nodes too: `meeting` is what `meeting_of` gives.
    """

    def __init__(
        self,
        processes: Sequence[subprocess.Popen[bytes]],
        logs: Sequence[Path],
        meeting: tuple[Path, str] | None = None,
        *,
        leads: bool = True,
    ) -> None:
        self.processes, self.logs, self.leads = processes, logs, leads
        self._meeting, self._has_told = meeting, False
        self._sizes = [log.stat().st_size for log in logs]
        self._saved_before = _saved_at(RunDir(logs[0].parent))
        self._since = 0.0
        self.first_bad: str | None = None  # how the first one that failed ended

    def poll(self) -> int | None:
        """The status of all, once all have ended; where one failed, the others are killed if they do not notice."""
        found = [process.poll() for process in self.processes]
        no_cause = (None, 0, EXIT_STOPPED, EXIT_RANK_LOST)
        bad = [i for i, status in enumerate(found) if status not in no_cause]
        if bad and self._meeting and not self._has_told:
            reason = death_reason(found[bad[0]] or 0, self.logs[bad[0]], self._sizes[bad[0]])
            if len(found) > 1:
                self.first_bad = f"process {bad[0]} of {len(found)}: {reason}"
            self._tell(*self._meeting, reason)
        if any(found) and None in found:  # some of them not with 0
            self._since = self._since or time.monotonic()
            if time.monotonic() - self._since > LOST_S:
                # one that was stopped before they had met has told nobody; one that is saving is left alone
                self.send(
                    signal.SIGKILL if any(s not in (None, 0, EXIT_STOPPED) for s in found) else signal.SIGTERM
                )
        ended = [status for status in found if status is not None]
        if self._has_told and self.leads and self._meeting and len(ended) == len(found):
            self._meeting[0].unlink(missing_ok=True)
        return joint_status(ended, leads=self.leads) if len(ended) == len(found) else None

    def _tell(self, place: Path, word: str, reason: str) -> None:
        self._has_told = True
        with contextlib.suppress(OSError, PipelineError):  # a full disk: they notice later
            write_json(place, {"word": word, "lost": reason})

    @staticmethod
    def kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """All at once, also those that have not begun."""
        for process in processes:
            process.kill()
            process.wait()

    def send(self, number: int) -> None:
        """A signal to each that lives, and to its own children."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def record_loss(self, task: TrainTask) -> None:
        """In the manifest and log, where the first process was killed and could not say that one was lost."""
        attempt = Attempt(task.run, task.identity)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(PipelineError, OSError))
            stack.enter_context(task.run.owned())
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(task.run.log.open("a"))))
            attempt.has_saved = _saved_at(task.run) != self._saved_before
            attempt.device_failed(LostRankError(self.first_bad or "a process of this cell is gone"))


def _saved_at(run: RunDir) -> int:
    try:
        return run.checkpoint_last.stat().st_mtime_ns
    except OSError:
        return 0


def joint_status(statuses: Sequence[int], *, leads: bool = True) -> int:
    """One for all: that of the first process, which owns the folder, unless another one was lost or its GPU failed.

    Without it (`leads` False: it is on another node) that of all where it is the same.
    """
    first = statuses[0]
    if leads and (len(statuses) == 1 or first in (0, EXIT_FAILED, EXIT_STOPPED)):
        return first
    if {*statuses} <= {0, EXIT_STOPPED}:
        return max(statuses)
    return EXIT_DEVICE_FAILED if EXIT_DEVICE_FAILED in statuses else EXIT_RANK_LOST
