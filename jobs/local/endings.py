"""How a process ended, in words; a cell that could not say so itself has it recorded in its manifest.

A training process says why it fails while it trains. Before its first step it may not come to that: a broken
torch, a missing package, a task that cannot be read, a kill while it imports. Then its parent speaks for it.
Torch-free.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path

from jobs.local.progress import last_epoch
from jobs.stages import EXIT_DEVICE_FAILED, EXIT_FAILED, EXIT_RANK_LOST, EXIT_STOPPED
from pipeline.errors import PipelineError
from pipeline.storage.ownership import owner
from pipeline.storage.run_dir import RunDir

_LONGEST = 300  # characters of a reason
_LAUNCHERS = ("srun: ", "slurmstepd: ")  # repeat the status of what they ran


@dataclass(frozen=True)
class Mark:
    """How far a log and a manifest had come before a process: what earlier attempts said is no reason of this one."""

    log_bytes: int
    manifest: tuple[int, int] | None  # inode and time of change; each write makes a new file

    @classmethod
    def of(cls, log: Path) -> Mark:
        """Of a log, and of the manifest beside it."""
        manifest = RunDir(log.parent).manifest
        return cls(log.stat().st_size if log.exists() else 0, _version(manifest))


def stage_ending(status: int, log: Path, start: int) -> str:
    """In words, by the exit status (negative: the signal that killed it) and its log from byte `start` on."""
    if status == 0:
        return "done"
    if status == EXIT_STOPPED:
        return "stopped, nothing of it is kept; the same command begins it again"
    return killed_by(-status) if status < 0 else last_error(log, start) or f"exit status {status}"


def cell_ending(
    run: RunDir, identity: str, status: int, *, mark: Mark, reason: str, stopped: bool
) -> tuple[int, str]:
    """(exit status, words) of a cell whose process ended with `status`, by its manifest.

    `reason` is recorded where the process could not say how it ended, unless it was `stopped` on purpose.
    """
    state = run.manifest_state(identity)
    if state == "done":
        return 0, "done"
    if state in ("failed", "diverged") and _version(run.manifest) != mark.manifest:
        error = run.read_manifest().get("error")
        return EXIT_FAILED, last_error(run.log, mark.log_bytes) or str(error)
    if status == EXIT_DEVICE_FAILED:
        epoch = last_epoch(run.metrics).get("epoch", 0) + 1
        return status, f"the GPU failed, not the cell; resumes at epoch {epoch} with the same command"
    if status == EXIT_RANK_LOST and not stopped:
        epoch = last_epoch(run.metrics).get("epoch", 0) + 1
        return status, f"{reason}; resumes at epoch {epoch} with the same command"
    if status in (EXIT_STOPPED, EXIT_RANK_LOST) or (status < 0 and stopped):
        # the state is saved at every epoch's end where that is cheap, and on a stop
        return EXIT_STOPPED, f"paused, resumes at epoch {last_epoch(run.metrics).get('epoch', 0) + 1}"
    record_failure(run, identity, reason)
    return status or EXIT_FAILED, reason


def record_failure(run: RunDir, identity: str, reason: str) -> None:
    """`failed` into the manifest, unless another process works in the folder or the disk refuses."""
    if not owner(run.path):
        with contextlib.suppress(PipelineError), run.owned():
            run.write_manifest(identity, "failed", error=reason)


def death_reason(status: int, log: Path, start: int) -> str:
    """Why a process ended that left no final state: its exit status, and the last line of its log."""
    place = f"see {log.parent.name}/{log.name}"
    last = (last_error(log, start) or "")[:_LONGEST]
    if status < 0:
        # a kill comes from outside, and nothing in the log explains it
        unexplained = not last or -status in (signal.SIGKILL, signal.SIGTERM)
        return killed_by(-status) if unexplained else f"{killed_by(-status)}: {last} ({place})"
    return f"{last or 'its process ended and said nothing'} (exit status {status}; {place})"


def killed_by(number: int) -> str:
    """The signal's name, and for SIGKILL its likely cause."""
    name = signal.Signals(number).name
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def last_error(log: Path, start: int = 0) -> str | None:
    """The last line of a log (from byte `start` on) that gives a reason: an error, else the end of what it says."""
    try:
        text = log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(_LAUNCHERS)]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if errors and not any(line.startswith("Traceback ") for line in lines[errors[-1] :]):
        return lines[errors[-1]].removeprefix("error: ")
    return lines[-1] if lines else None


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
