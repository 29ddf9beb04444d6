"""Questions to Slurm, few and gentle: what is queued, how did it end, why. Torch-free."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from jobs.local.endings import killed_by, last_error
from jobs.planning.status import OUT_OF_MEMORY, JobState
from pipeline.errors import LaunchError

_ACTIVE = {
    "PENDING",
    "RUNNING",
    "REQUEUED",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "RESIZING",
    "SIGNALING",
    "STOPPED",
}
_TIMEOUT_S = 60.0


_ENDINGS = {
    "COMPLETED": "",
    "OUT_OF_MEMORY": OUT_OF_MEMORY,
    "TIMEOUT": "reached its time limit without saving in time",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "missed its deadline",
}
_CRASHED = {"FAILED", "OUT_OF_MEMORY"}


def queued_state(name: str, reason: str = "", elapsed_s: int = 0) -> JobState:
    """Of a job that squeue lists, whatever it calls it."""
    return JobState(name.lower(), active=True, reason=reason, elapsed_s=elapsed_s)


def accounted_state(name: str, reason: str = "", elapsed_s: int = 0, exit_code: str = "") -> JobState:
    """Of a job that only sacct knows, by its words."""
    if name in _ACTIVE:
        return queued_state(name, reason, elapsed_s)
    ending = _ending(name, reason, elapsed_s, exit_code)
    return JobState(name.lower(), False, reason, elapsed_s, ending, crashed=name in _CRASHED)


def _ending(name: str, reason: str, elapsed_s: int, exit_code: str) -> str:
    if name.startswith("CANCELLED"):
        waited_in_vain = "Dependency" in reason and not elapsed_s
        return "cancelled" + (" (its data never came)" if waited_in_vain else "")
    if name in _ENDINGS:
        return _ENDINGS[name]
    status, _, number = exit_code.partition(":")
    if status in ("9", "137") or number == "9":
        return killed_by(signal.SIGKILL)
    if number == "53":
        return "could not start (its folder is not reachable from the node)"
    return f"ended with status {exit_code}"


def states(jobs: Iterable[str]) -> dict[str, JobState]:
    """The state of each job id (`12`, or `12_3` of an array) by one squeue and at most one sacct.

    A job neither knows is left out: nothing may be made to wait for it.
    """
    requested = set(jobs)
    if not requested:
        return {}
    result: dict[str, JobState] = {}
    for line in _run("squeue", "--me", "-h", "-r", "-o", "%i|%T|%r|%M").splitlines():
        job, state, reason, elapsed = (line.split("|") + [""] * 3)[:4]
        if job in requested:
            result[job] = queued_state(state, "" if reason == "None" else reason, seconds(elapsed))
    bases = sorted({job.split("_")[0] for job in requested - result.keys()})
    if bases:
        columns = "JobID,State,Reason,ElapsedRaw,ExitCode"
        answer = _run("sacct", "-X", "-n", "-P", "-j", ",".join(bases), "-o", columns)
        for line in answer.splitlines():
            job, state, reason, elapsed, exit_code = (line.split("|") + [""] * 5)[:5]
            for each in expand(job):
                if each in requested and each not in result:
                    result[each] = accounted_state(state.split(" ")[0], reason, int(elapsed or 0), exit_code)
    return result


def expand(job: str) -> list[str]:
    """`12_[0-2,5%3]` -> 12_0, 12_1, 12_2, 12_5: a pending array is one line of sacct."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(%\d+)?\]", job)
    if not match:
        return [job]
    tasks = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        tasks += [f"{match[1]}_{i}" for i in range(int(first), int(last or first) + 1)]
    return tasks


def seconds(text: str) -> int:
    """Slurm's `1-02:03:04` or `3:04`."""
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = 60 * total + (int(part) if part.isdigit() else 0)
    return total + 86400 * int(days or 0)


def ending(job: str, state: JobState, folder: Path) -> str:
    """Why a job ended, "" for a success; its log in `folder` knows where Slurm only says that it was killed.

    Of a job that ended before its cells began (no Python, no submitit, a failing line of the profile's
    `setup`), the log's last line is all there is.
    """
    log = folder / f"{job}_0_log.out"
    killed, failed = "SIGKILL" in state.ending, state.ending.startswith("ended with status")
    if not (killed or failed) or not log.exists():
        return state.ending
    tail = log.read_bytes()[-4000:].decode(errors="replace").lower()
    if any(words in tail for words in ("exceeded memory limit", "oom-kill", "oom_kill")):
        return OUT_OF_MEMORY
    last = last_error(log) if failed else None
    return f"{state.ending}: {last} (see slurm/{log.name})" if last else state.ending


def reasons(cell_jobs: Mapping[str, str], folder: Path, *, wait_s: float = 0.0) -> dict[str, str]:
    """Why cells (name -> job) ended that could not say so themselves; sacct may lag `wait_s` behind."""
    deadline = time.monotonic() + wait_s
    known = states(cell_jobs.values())
    while any(state.active for state in known.values()) and time.monotonic() < deadline:
        time.sleep(1)
        known = states(cell_jobs.values())
    endings = {cell: ending(job, known[job], folder) for cell, job in cell_jobs.items() if job in known}
    return {cell: why for cell, why in endings.items() if why}


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; one that has ended already is not an error."""
    listed = sorted(set(jobs))
    if listed:
        _run("scancel", *listed, check=False)


def max_array_size() -> int:
    """The highest number of tasks an array may have here."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config", check=False))
    return int(match[1]) - 1 if match else 1000


def _run(*command: str, check: bool = True) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise LaunchError(
            f"{command[0]}: not found; is this a Slurm login node? (CLUSTER=local runs on this machine)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"{command[0]}: no answer in {_TIMEOUT_S:.0f} s; Slurm is busy, try again later"
        ) from error
    if check and done.returncode:
        raise LaunchError(
            f"{command[0]}: {done.stderr.strip() or f'status {done.returncode}'}; try again later"
        )
    return done.stdout
