"""Questions to Slurm about jobs of ours, few and gentle; nothing is believed without proof. Torch-free."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.planning.status import JobState
from jobs.slurm.commands import SlurmSilentError, ask, this_cluster
from jobs.slurm.endings import ENDING, accounted_state, ending, queued_state
from jobs.slurm.records import Proof, Submitted, this_user
from pipeline.errors import LaunchError

_QUEUE = "%i|%u|%T|%r|%M|%N|%j|%Z"
_ACCOUNTED = "JobID,User,State,Reason,ElapsedRaw,NodeList,ExitCode,Cluster,JobName,WorkDir"
_SILENT = "Slurm does not answer"


@dataclass(frozen=True)
class Answers:
    """What Slurm says of some jobs."""

    states: Mapping[Submitted, JobState]  # a job it has forgotten is left out: it has ended, nobody knows how
    notes: tuple[str, ...] = ()  # what it did not say
    silent: bool = False  # whether neither its queue nor its accounting answered
    blind: bool = False  # whether its queue did not answer
    cluster: str = ""  # the one that was asked


def states(jobs: Iterable[Submitted]) -> Answers:
    """The state of each job by one squeue and at most one sacct; whatever of the two fails is said, never raised.

    A job that may live without being seen (of another user, or where nothing answers) counts as active; one of
    one's own that the queue does not list is ending, whatever accounting says.
    """
    requested = set(jobs)
    if not requested:
        return Answers({})
    notes: list[str] = []
    try:
        cluster = this_cluster()
    except LaunchError as error:
        return _nothing_known(requested, [str(error)])
    # what another cluster runs is never found here, whatever has the same number
    requested = {job for job in requested if job.proof.cluster == cluster.name}
    found: dict[Submitted, JobState] = {}
    mine = {job for job in requested if job.proof.user == this_user()}
    try:
        found |= _queued(mine)
        answered = set(mine)
    except SlurmSilentError as error:
        notes.append(f"the queue is not known ({error})")
        answered = set()
    try:
        found |= _queued(requested - mine)
        answered |= set() if cluster.hides_jobs else requested - mine
    except SlurmSilentError as error:  # perhaps a name that is not known on this machine
        notes.append(f"the jobs of others are not known ({error})")
    missing = {job for job in requested if job not in found or not found[job].active}
    try:
        for job, state in _accounted(missing).items() if missing else ():
            # accounting lags behind, or never hears of an end: the queue knows better
            if not state.active or job not in answered:
                found[job] = state
            elif job not in found:
                found[job] = replace(state, state=ENDING, is_ending=True)
    except SlurmSilentError as error:
        if mine - answered:
            return _nothing_known(requested, [*notes, f"nor the accounting ({error})"])
        if missing - found.keys():
            many = f"{len(missing - found.keys())} jobs"
            notes.append(f"how {many} ended is not known, as accounting does not answer ({error})")
    missing -= found.keys()
    found |= {job: _unseen(job) for job in missing - answered}
    return Answers(found, tuple(notes), blind=bool(mine - answered), cluster=cluster.name)


def ended(jobs: Iterable[Submitted]) -> set[Submitted]:
    """Those that have certainly ended: not what another cluster or user may run, nor what nobody answers for."""
    asked = set(jobs)
    answers = states(asked)
    return {
        job
        for job in asked
        if job.proof.cluster == answers.cluster
        and (job not in answers.states or not answers.states[job].active)
    }


def await_end(jobs: Iterable[Submitted], patience_s: float) -> None:
    """Return once the processes of these jobs have ended, which write until then, or after `patience_s`."""
    left, deadline = set(jobs), time.monotonic() + patience_s
    while (left := left - ended(left)) and time.monotonic() < deadline:
        time.sleep(0.3)


def _nothing_known(jobs: Collection[Submitted], notes: Iterable[str]) -> Answers:
    state = JobState("unknown", active=True, reason=_SILENT)
    return Answers(dict.fromkeys(jobs, state), tuple(notes), silent=True, blind=True)


def _unseen(job: Submitted) -> JobState:
    who = "" if job.proof.user == this_user() else f" of {job.proof.user}, whose jobs are not shown to you"
    return JobState(
        "unknown", active=True, reason=f"job {job.job}{who or ' is not listed, and may be queued'}"
    )


def _live(jobs: Collection[Submitted]) -> dict[Submitted, JobState]:
    return {job: state for job, state in _queued(jobs).items() if state.active}


def _queued(jobs: Collection[Submitted]) -> dict[Submitted, JobState]:
    """Those that the queue lists, also for the minutes after their end."""
    users = sorted({job.proof.user for job in jobs})
    everybody = users == [this_user()]
    if not users:
        return {}
    command = ("squeue", "-a", "-t", "all", "-h", "-r", "-o", _QUEUE)  # -a: hidden partitions too
    listed = ask(*command, *(("--me",) if everybody else ("-u", ",".join(users))))
    wanted = {(job.job, job.proof.name, job.proof.user, job.proof.folder): job for job in jobs}
    found = {}
    for number, user, state, reason, elapsed, nodes, name, folder in _rows(listed, 8):
        if job := wanted.get((number, name, user, folder)):
            why = "" if reason == "None" else reason
            found[job] = queued_state(state, why, seconds(elapsed), nodes)
    return found


def _accounted(jobs: Collection[Submitted]) -> dict[Submitted, JobState]:
    wanted: dict[tuple[str, Proof], Submitted] = {(job.job, job.proof): job for job in jobs}
    bases = sorted({job.job.split("_")[0] for job in jobs})
    # -D: a number that was given twice names both jobs, and the newest line of a job is its last
    listed = ask("sacct", "-X", "-D", "-n", "-P", "-j", ",".join(bases), "-o", _ACCOUNTED)
    found = {}
    for fields in _rows(listed, 10):
        numbers, user, state, reason, elapsed, nodes, exit_code, *_ = fields
        cluster, name, folder = fields[-3:]
        proof = Proof(cluster, name, user, folder)
        for number in expand(numbers):
            job = wanted.get((number, proof))
            if job is not None:
                at = "" if nodes == "None assigned" else nodes
                found[job] = replace(
                    accounted_state(
                        state.split(" ")[0], reason, int(elapsed) if elapsed.isdigit() else 0, exit_code
                    ),
                    nodes=at,
                )
    return found


def _rows(text: str, columns: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = line.split("|", columns - 1)
        if len(fields) == columns:
            yield fields


def find(proofs: Iterable[Proof], since: str) -> dict[str, list[str]]:
    """The numbers of the jobs (of arrays as a whole) of each name that Slurm knows; raises SlurmSilentError.

    A name has several where an sbatch was tried again that Slurm had taken without saying so. `since` is when the
    oldest of them may have been submitted.
    """
    wanted = {(proof.name, proof.user, proof.folder): proof for proof in proofs}
    if not wanted:
        return {}
    cluster = this_cluster().name
    found: dict[str, dict[str, None]] = {}
    names = ",".join(name for name, _, _ in wanted)
    queued = ask("squeue", "-a", "-h", "-r", "-o", "%i|%u|%j|%Z", f"--name={names}")
    lines = list(_rows(queued, 4))
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(_epoch(since) - 600))
    try:
        accounted = ask(
            *("sacct", "-X", "-n", "-P", f"--name={names}", "-S", since, "-a"),
            *("-o", "JobID,User,JobName,WorkDir"),
        )
        lines += _rows(accounted, 4)
    except SlurmSilentError:
        pass  # what is queued is what matters
    for number, user, name, folder in lines:
        proof = wanted.get((name, user, folder))
        if proof is not None and proof.cluster == cluster:
            found.setdefault(proof.name, {})[number.split("_")[0]] = None
    return {name: list(numbers) for name, numbers in found.items()}


def _epoch(text: str) -> float:
    try:
        return time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return time.time() - 86400


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


def reasons(cell_jobs: Mapping[str, Submitted], folder: Path, *, wait_s: float = 0.0) -> dict[str, str]:
    """Why cells (name -> job) ended that could not say so themselves; accounting may lag `wait_s` behind."""
    deadline = time.monotonic() + wait_s
    while True:
        answers = states(cell_jobs.values())
        lagging = any(state.active for state in answers.states.values()) and not answers.silent
        if not lagging or time.monotonic() > deadline:
            break
        time.sleep(1)
    for note in answers.notes:
        print(f"note: {note}", flush=True)
    known = {
        cell: ending(job.job, answers.states[job], folder)
        for cell, job in cell_jobs.items()
        if job in answers.states and not answers.states[job].active
    }
    return {cell: why for cell, why in known.items() if why}


def cancel(jobs: Iterable[Submitted]) -> dict[Submitted, str]:
    """Cancel jobs of ours that are queued; what could not be cancelled, each in a line with what Slurm says of it.

    Slurm itself compares name and user once more, and its queue is looked at again. Raises SlurmSilentError.
    """
    listed = _live(set(jobs)) if (jobs := list(jobs)) else {}
    here = this_cluster().name if listed else ""
    groups: dict[Proof, list[str]] = {}
    for job in listed:
        if job.proof.cluster == here:
            groups.setdefault(job.proof, []).append(job.job)
    said = {proof: _scancel(proof, sorted(numbers)) for proof, numbers in groups.items()}
    left = {job: state for job, state in _left(listed) if job.proof in groups}
    return {
        job: f"job {job.job} ({job.proof.name}, of {job.proof.user}) is still {state.state}: "
        f"{said[job.proof] or 'Slurm gave no reason'}; `scancel {job.job}`"
        for job, state in left.items()
    }


def release(jobs: Iterable[Submitted]) -> list[str]:
    """Let Slurm start jobs of ours again that it holds because a start failed; a line for each."""
    notes = []
    for job in jobs:
        try:
            ask("scontrol", "release", job.job)
            notes.append(f"job {job.job} was held, as Slurm could not start it again; it is released")
        except SlurmSilentError as error:
            notes.append(f"job {job.job} is held, as Slurm could not start it again, and stays so ({error})")
    return notes


def _scancel(proof: Proof, numbers: Collection[str]) -> str:
    """ "" or what scancel says against it."""
    try:
        ask("scancel", f"--name={proof.name}", f"--user={proof.user}", *numbers)
    except SlurmSilentError as error:
        return str(error)
    return ""


def _left(listed: Mapping[Submitted, JobState]) -> list[tuple[Submitted, JobState]]:
    """Those that are still queued or running; a job that is ending gets a moment for it."""
    for _ in range(10):
        still = {job: s for job, s in _live(set(listed)).items() if not s.is_ending} if listed else {}
        if not still:
            break
        time.sleep(0.3)
    return list(still.items())
