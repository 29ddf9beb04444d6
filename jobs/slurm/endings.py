"""What Slurm calls a state, and how a job ended in words. Torch-free."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

from jobs.local.endings import killed_by, last_error
from jobs.planning.status import OUT_OF_MEMORY, JobState

_ENDINGS = {
    "COMPLETED": "",
    "OUT_OF_MEMORY": OUT_OF_MEMORY,
    "TIMEOUT": "reached its time limit without saving in time",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "missed its deadline",
    "REVOKED": "moved to another cluster of the federation",
}
_FINAL = {
    *_ENDINGS,
    "FAILED",
    "CANCELLED",
}  # every other word, also one we never heard of, is of a job that lives
_CRASHED = {"FAILED", "OUT_OF_MEMORY"}
ENDING = "ending"  # of a job that is in no queue any more, though accounting has not heard of its end


def queued_state(name: str, reason: str = "", elapsed_s: int = 0, nodes: str = "") -> JobState:
    """Of a job that squeue lists, also for the minutes after its end; it says less of that than accounting."""
    if name in _FINAL:
        raised = re.match(r"RaisedSignal:(\d+)", reason)
        state = accounted_state(name, reason, elapsed_s, f"0:{raised[1]}" if raised else "")
        return replace(state, nodes=nodes)
    return JobState(
        name.lower(),
        active=True,
        reason=reason,
        elapsed_s=elapsed_s,
        nodes=nodes,
        is_ending=name == "COMPLETING",
    )


def accounted_state(name: str, reason: str = "", elapsed_s: int = 0, exit_code: str = "") -> JobState:
    """Of a job that only sacct knows, by its words."""
    if name not in _FINAL:
        return queued_state(name or "unknown", reason, elapsed_s)
    words = _in_words(name, reason, elapsed_s, exit_code)
    return JobState(name.lower(), False, reason, elapsed_s, words, crashed=name in _CRASHED)


def _in_words(name: str, reason: str, elapsed_s: int, exit_code: str) -> str:
    if name == "CANCELLED":
        waited_in_vain = "Dependency" in reason and not elapsed_s
        return "cancelled" + (" (its data never came)" if waited_in_vain else "")
    if name in _ENDINGS:
        return _ENDINGS[name]
    status, _, number = exit_code.partition(":")
    if status in ("9", "137") or number == "9":
        return killed_by(signal.SIGKILL)
    if number == "53":
        return "could not start (its folder is not reachable from the node)"
    if number.isdigit() and int(number) in {*map(int, signal.Signals)}:
        return killed_by(int(number))
    return f"ended with status {exit_code}" if exit_code else "failed"


def job_log(job: str, folder: Path) -> Path:
    """What a job printed, before its cells began and beside them."""
    return folder / f"{job}_0_log.out"


def ending(job: str, state: JobState, folder: Path) -> str:
    """Why a job ended, "" for a success; its log in `folder` knows where Slurm only says that it failed.

    Of a job that ended before its cells began (no Python, no submitit, a failing line of the profile's
    `setup`), the log's last line is all there is.
    """
    log = job_log(job, folder)
    if state.active or not state.crashed or state.ending == OUT_OF_MEMORY or not log.exists():
        return state.ending
    try:
        tail = log.read_bytes()[-4000:].decode(errors="replace").lower()
    except OSError:  # a colleague's, which is not shown
        return state.ending
    if any(words in tail for words in ("exceeded memory limit", "oom-kill", "oom_kill")):
        return OUT_OF_MEMORY
    last = None if "SIGKILL" in state.ending else last_error(log)
    return f"{state.ending}: {last} (see slurm/{log.name})" if last else state.ending
