"""The status of each cell: done, active, pending (to be run or submitted), or held back, and why. Torch-free.

Files prove that a cell is done. What a queue says decides the rest: Slurm's, or on this machine the owners of
the run folders.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jobs.planning.plan import Plan, PlannedCell
from pipeline.storage.ownership import owner

_CRASHES = 3  # in a row under the same code, before a person must look
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class JobState:
    """What a queue says of one job."""

    state: str  # running, pending, failed, ...
    active: bool = False  # queued or running, or about to be again
    reason: str = ""  # what it waits for, or where it runs
    elapsed_s: int = 0
    ending: str = ""  # how it ended, in words; "" for a success
    crashed: bool = False  # by what it ran; a cancelled job or a lost node is no crash


@dataclass(frozen=True)
class StartedJob:
    """A job that was started for a cell."""

    job: str | None = None  # its id; None on this machine
    state: JobState | None = None  # None: its queue no longer knows it
    code: str = ""  # digest of the code it ran
    mem_gb: float | None = None  # what it had; None: the site's own share


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

    def of(self, kind: Literal["done", "active", "pending", "held"]) -> list[CellStatus]:
        """The cells of one kind."""
        return [cell for cell in self.cells if cell.kind == kind]


def cell_status(
    cell: PlannedCell, jobs: Sequence[StartedJob], *, code: str = "", mem_gb: float | None = None
) -> CellStatus:
    """By the cell's files and its jobs, the oldest first.

    `code` is the digest of the code it would run now, `mem_gb` the memory it would ask for.
    """
    last = jobs[-1] if jobs else StartedJob()
    if cell.reason is None:
        return CellStatus(cell, "done", job=last.job)
    if cell.held is not None:
        return CellStatus(cell, "held", cell.held, last.job)
    for job in jobs:
        if job.state is not None and job.state.active:
            return CellStatus(cell, "active", job.state.state, job.job, job.state)
    if last.state is None:
        unknown = f"; its job {last.job} is unknown to Slurm" if jobs else ""
        return CellStatus(cell, "pending", cell.reason + unknown, last.job)
    why = last.state.ending or cell.reason
    if why == OUT_OF_MEMORY and (mem_gb or 0) <= (last.mem_gb or 0):
        memory = f"{last.mem_gb:g} GB" if last.mem_gb else "the site's own share"
        why = f"out of memory with {memory}; ask for more (run.resources mem_gb), or a smaller batch"
        return CellStatus(cell, "held", why, last.job, last.state)
    crashes = sum(job.code == code and job.state is not None and job.state.crashed for job in jobs)
    if crashes >= _CRASHES and last.code == code and last.state.crashed:
        why = f"failed {crashes} times under the same code ({why}); see its log, then `make retry`"
        return CellStatus(cell, "held", why, last.job, last.state)
    if cell.reason.startswith("failed: ") and not why.startswith(("cancelled", OUT_OF_MEMORY)):
        why = cell.reason
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
