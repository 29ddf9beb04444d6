"""The status of each cell: done, active, pending (to be run or submitted), or held back, and why. Torch-free.

Files prove that a cell is done. What a queue says decides the rest: Slurm's, or on this machine the owners of
the run folders.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.planning.plan import Plan, PlannedCell
from pipeline.storage.ownership import owner
from pipeline.storage.typed import typed

_CRASHES = 3  # in a row under the same code, before a person must look
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class JobState:
    """What a queue says of one job."""

    state: str  # running, pending, failed, ...
    active: bool = False  # queued or running, or about to be again
    reason: str = ""  # what it waits for
    elapsed_s: int = 0
    ending: str = ""  # how it ended, in words; "" for a success
    crashed: bool = False  # by what it ran; a cancelled job or a lost node is no crash
    nodes: str = ""  # where it runs or ran
    is_ending: bool = False  # it has been cancelled or is over, and its processes are being ended


@dataclass(frozen=True)
class StartedJob:
    """A job that was started for a cell."""

    job: str | None = None  # its id; None on this machine
    state: JobState | None = None  # None: its queue no longer knows it
    settings: str = ""  # digest of what it ran, and how: see `Want`
    mem_gb: float | None = None  # what it had; None: the site's own share
    note: str = ""  # why its queue does not know it


@dataclass(frozen=True)
class Want:
    """How a cell would be run now."""

    settings: str = ""  # digest of the code, the set-up lines, the python and the resources
    mem_gb: float | None = None


_NOTHING = Want()


@dataclass(frozen=True)
class CellStatus:
    """One cell."""

    planned: PlannedCell
    kind: Literal["done", "active", "pending", "held"]
    why: str = ""
    job: str | None = None  # the newest
    state: JobState | None = None


@dataclass(frozen=True)
class GridStatus:
    """All cells of a plan, and the jobs of its other stages that are queued or running."""

    cells: Sequence[CellStatus]
    wrangle_jobs: Mapping[str, str] = field(default_factory=dict)  # packed folder -> job
    final_jobs: Mapping[str, JobState] = field(default_factory=dict)
    submits: bool = False  # whether one of them writes the submission too
    notes: tuple[str, ...] = ()  # what the queue did not say
    silent: bool = False  # whether it said nothing at all
    blind: bool = False  # whether the queue did not answer, so that one's own jobs may be hidden
    stuck: tuple[
        str, ...
    ] = ()  # jobs that Slurm could not start again, and holds until someone releases them
    queued: int = 0  # jobs that are queued or running, each task of an array as one
    proven: Mapping[str, Any] = field(default_factory=dict)  # number of each such job -> what proves it
    broken_off: int = 0  # submissions of which it is not known what they queued

    def of(self, kind: Literal["done", "active", "pending", "held"]) -> list[CellStatus]:
        """The cells of one kind."""
        return [cell for cell in self.cells if cell.kind == kind]


def cell_status(cell: PlannedCell, jobs: Sequence[StartedJob], want: Want = _NOTHING) -> CellStatus:
    """By the cell's files and its jobs, the oldest first, and by how it would be run now."""
    last = jobs[-1] if jobs else StartedJob()
    if cell.reason is None:
        return CellStatus(cell, "done", job=last.job)
    if cell.held is not None:
        return CellStatus(cell, "held", cell.held, last.job)
    for job in jobs:
        if job.state is not None and job.state.active:
            why = job.state.reason if job.state.state == "unknown" else job.state.state
            return CellStatus(cell, "active", why, job.job, job.state)
    if last.state is None:
        unknown = f"; {last.note or f'its job {last.job} is unknown to Slurm'}" if jobs else ""
        return CellStatus(cell, "pending", cell.reason + unknown, last.job)
    why = last.state.ending or cell.reason
    if why == OUT_OF_MEMORY and (want.mem_gb or 0) <= (last.mem_gb or 0):
        memory = f"{last.mem_gb:g} GB" if last.mem_gb else "the site's own share"
        why = f"out of memory with {memory}; ask for more (run.resources mem_gb), or a smaller batch"
        return CellStatus(cell, "held", why, last.job, last.state)
    if cell.reason.startswith("failed: ") and not why.startswith(("cancelled", OUT_OF_MEMORY)):
        why = cell.reason
    alike = [job for job in jobs if job.settings == want.settings]
    crashes = sum(job.state is not None and job.state.crashed for job in alike)
    if crashes >= _CRASHES and last in alike and last.state.crashed:
        why = (
            f"failed {crashes} times under the same code and settings ({why}); `{typed('logs')}` shows its log; "
            f"correct the cause, or `{typed('retry', run=cell.run.name)}`"
        )
        return CellStatus(cell, "held", why, last.job, last.state)
    return CellStatus(cell, "pending", why, last.job, last.state)


def local_status(plan: Plan) -> GridStatus:
    """On this machine: a cell whose folder a process owns is active."""
    return GridStatus([cell_status(cell, list(_owner_of(cell))) for cell in plan.cells])


def _owner_of(cell: PlannedCell) -> Iterable[StartedJob]:
    process = owner(cell.run.path) if cell.reason is not None else ""
    if process:
        begun = cell.run.provenance
        elapsed = max(0, int(time.time() - begun.stat().st_mtime)) if begun.exists() else 0
        yield StartedJob(state=JobState("running", active=True, reason=process, elapsed_s=elapsed))
