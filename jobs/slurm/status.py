"""The status of each cell: done, active, pending (to be submitted), or held back, and why. Torch-free.

Files prove that a cell is done; Slurm is asked only about cells that are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.planning.plan import Plan, PlannedCell
from jobs.slurm.queue import JobState, ending, states
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir

_CRASHES = 3  # in a row under the same code, before a person must look


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

    cells: list[CellStatus]
    wrangle_jobs: dict[str, str]  # packed folder -> job
    final_jobs: list[str]
    submits: bool  # whether one of them writes the submission too
    states: dict[str, JobState]

    def of(self, kind: str) -> list[CellStatus]:
        """The cells of one kind."""
        return [cell for cell in self.cells if cell.kind == kind]


def read_grid_status(plan: Plan, *, mem_gb: dict[str, float | None], code: str) -> GridStatus:
    """Compare the plan with the ledger and with Slurm: one squeue and at most one sacct in all.

    `mem_gb` is what each cell (by folder name) would ask for now, `code` the digest of the code it would run.
    """
    events = read_jsonl(plan.experiment.ledger)
    submitted = [event for event in events if event["event"] == "submitted"]
    missing = {cell.run.name for cell in plan.missing}
    stages = [event for event in submitted if "stage" in event]
    requested = {job for e in submitted if e.get("cell") in missing for job in e["jobs"]}
    requested |= {job for event in stages[-50:] for job in event["jobs"]}
    known = states(requested)
    by_cell: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["event"] == "retry":
            by_cell[event["cell"]] = []  # what was before counts no more
        elif event["event"] == "submitted" and "cell" in event:
            by_cell.setdefault(event["cell"], []).append(event)
    cells = []
    for cell in plan.cells:
        history = [e for e in by_cell.get(cell.run.name, ()) if e["identity"] == cell.identity]
        cells.append(_cell_status(plan.experiment, cell, history, known, mem_gb.get(cell.run.name), code))
    active = [(event, job) for event in stages for job in event["jobs"] if job in known and known[job].active]
    wrangle_jobs = {packed: job for e, job in active if e["stage"] == "wrangle" for packed in e["packed"]}
    final_jobs = [(event, job) for event, job in active if event["stage"] == "final"]
    submits = any(event.get("submission") for event, _ in final_jobs)
    return GridStatus(cells, wrangle_jobs, [job for _, job in final_jobs], submits, known)


def _cell_status(
    experiment: ExperimentDir,
    cell: PlannedCell,
    history: Sequence[dict[str, Any]],
    known: dict[str, JobState],
    mem_gb: float | None,
    code: str,
) -> CellStatus:
    if cell.reason is None:
        return CellStatus(cell, "done", job=history[-1]["jobs"][-1] if history else None)
    if cell.held is not None:
        return CellStatus(cell, "held", cell.held, job=history[-1]["jobs"][-1] if history else None)
    for job in [job for event in history for job in event["jobs"]]:
        if job in known and known[job].active:
            return CellStatus(cell, "active", known[job].state.lower(), job, known[job])
    if not history:
        return CellStatus(cell, "pending", cell.reason)
    last = history[-1]
    job = last["jobs"][-1]
    if job not in known:
        return CellStatus(cell, "pending", f"{cell.reason}; its job {job} is unknown to Slurm", job)
    ended = known[job]
    why = ending(job, ended, experiment.slurm) or cell.reason
    if why == "out of memory" and (mem_gb or 0) <= (last.get("mem_gb") or 0):
        memory = f"{last['mem_gb']:g} GB" if last.get("mem_gb") else "the site's own share"
        why = f"out of memory with {memory}; ask for more (run.resources mem_gb), or a smaller batch"
        return CellStatus(cell, "held", why, job, ended)
    crashes = [e for e in history if e.get("code") == code and _crashed(known.get(e["jobs"][-1]))]
    if len(crashes) >= _CRASHES and crashes[-1] is last:
        why = f"failed {len(crashes)} times under the same code ({why}); see its log, then `make retry`"
        return CellStatus(cell, "held", why, job, ended)
    if cell.reason.startswith("failed: ") and not why.startswith(("cancelled", "out of memory")):
        why = cell.reason
    return CellStatus(cell, "pending", why, job, ended)


def _crashed(state: JobState | None) -> bool:
    return state is not None and state.state in ("FAILED", "OUT_OF_MEMORY")
