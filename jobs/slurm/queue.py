"""Questions to Slurm, few and gentle: what is queued, how did it end, why. Torch-free."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class JobState:
    """How one job (or array task) stands."""

    state: str
    reason: str = ""
    elapsed_s: int = 0
    exit_code: str = ""
    in_queue: bool = False

    @property
    def active(self) -> bool:
        """Queued or running, or about to be again."""
        return self.in_queue or self.state in _ACTIVE

    @property
    def explanation(self) -> str:
        """How it ended, in words; "" for a success."""
        if self.state.startswith("CANCELLED"):
            waited_in_vain = "Dependency" in self.reason and not self.elapsed_s
            return "cancelled" + (" (its data never came)" if waited_in_vain else "")
        words = {
            "COMPLETED": "",
            "OUT_OF_MEMORY": "out of memory",
            "TIMEOUT": "reached its time limit without saving in time",
            "NODE_FAIL": "its node failed",
            "PREEMPTED": "preempted",
            "BOOT_FAIL": "its node did not start",
            "DEADLINE": "missed its deadline",
        }
        if self.state in words:
            return words[self.state]
        status, _, number = self.exit_code.partition(":")
        if status in ("9", "137") or number == "9":
            return "killed by SIGKILL (out of memory?)"
        if number == "53":
            return "could not start (its folder is not reachable from the node)"
        return f"ended with status {self.exit_code}"


def states(jobs: Iterable[str]) -> dict[str, JobState]:
    """The state of each job id (`12`, or `12_3` of an array) by one squeue and at most one sacct.

    A job neither knows is left out: nothing may be made to wait for it.
    """
    requested = set(jobs)
    if not requested:
        return {}
    result: dict[str, JobState] = {}
    for line in _ask("squeue", "--me", "-h", "-r", "-o", "%i|%T|%r|%M").splitlines():
        job, state, reason, elapsed = (line.split("|") + [""] * 3)[:4]
        if job in requested:
            result[job] = JobState(state, "" if reason == "None" else reason, seconds(elapsed), in_queue=True)
    bases = sorted({job.split("_")[0] for job in requested - result.keys()})
    if bases:
        columns = "JobID,State,Reason,ElapsedRaw,ExitCode"
        answer = _ask("sacct", "-X", "-n", "-P", "-j", ",".join(bases), "-o", columns)
        for line in answer.splitlines():
            job, state, reason, elapsed, exit_code = (line.split("|") + [""] * 5)[:5]
            for each in expand(job):
                if each in requested and each not in result:
                    result[each] = JobState(state.split(" ")[0], reason, int(elapsed or 0), exit_code)
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
    """Why a job ended, "" for a success; its log in `folder` knows where Slurm only says that it was killed."""
    why = state.explanation
    log = folder / f"{job}_0_log.out"
    if ("SIGKILL" in why or "status" in why) and log.exists():
        tail = log.read_bytes()[-4000:].decode(errors="replace").lower()
        if any(words in tail for words in ("exceeded memory limit", "oom-kill", "oom_kill")):
            return "out of memory"
    return why


def reasons(jobs_of: Mapping[str, str], folder: Path, *, wait_s: float = 0.0) -> dict[str, str]:
    """Why cells (name -> job) ended that could not say so themselves; sacct may lag `wait_s` behind."""
    deadline = time.monotonic() + wait_s
    known = states(jobs_of.values())
    while any(state.active for state in known.values()) and time.monotonic() < deadline:
        time.sleep(1)
        known = states(jobs_of.values())
    whys = {cell: ending(job, known[job], folder) for cell, job in jobs_of.items() if job in known}
    return {cell: why for cell, why in whys.items() if why}


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; one that has ended already is not an error."""
    listed = sorted(set(jobs))
    if listed:
        _ask("scancel", *listed, check=False)


def max_array_size() -> int:
    """The highest number of tasks an array may have here."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config", check=False))
    return int(match[1]) - 1 if match else 1000


def _ask(*command: str, check: bool = True) -> str:
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
