"""The status of a grid on Slurm: the plan, the ledger and the queue compared. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobs.planning.plan import Plan
from jobs.planning.status import GridStatus, JobState, StartedJob, cell_status
from jobs.slurm.queue import ending, states
from pipeline.storage.jsonl import read_jsonl


def read_grid_status(plan: Plan, *, mem_gb: Mapping[str, float | None], code: str) -> GridStatus:
    """By one squeue and at most one sacct in all, and only about cells that files do not prove to be done.

    `mem_gb` is what each cell (by folder name) would ask for now, `code` the digest of the code it would run.
    """
    events = read_jsonl(plan.experiment.ledger)
    submitted = [event for event in events if event["event"] == "submitted"]
    missing = {cell.run.name for cell in plan.missing}
    stages = [event for event in submitted if "stage" in event]
    requested = {job for e in submitted if e.get("cell") in missing for job in e["jobs"]}
    requested |= {job for event in stages[-50:] for job in event["jobs"]}
    known = states(requested)
    known |= {job: replace(s, ending=ending(job, s, plan.experiment.slurm)) for job, s in known.items()}
    jobs = _jobs_of_cells(events, known)
    cells = []
    for cell in plan.cells:
        own = jobs.get((cell.run.name, cell.identity), ())
        cells.append(cell_status(cell, own, code=code, mem_gb=mem_gb.get(cell.run.name)))
    active = [(event, job) for event in stages for job in event["jobs"] if job in known and known[job].active]
    wrangle_jobs = {packed: job for e, job in active if e["stage"] == "wrangle" for packed in e["packed"]}
    final_jobs = {job: known[job] for event, job in active if event["stage"] == "final"}
    submits = any(event.get("submission") for event, job in active if job in final_jobs)
    return GridStatus(cells, wrangle_jobs, final_jobs, submits)


def _jobs_of_cells(
    events: Sequence[Mapping[str, Any]], known: Mapping[str, JobState]
) -> dict[tuple[str, str], list[StartedJob]]:
    """(cell, identity) -> its jobs since the last retry, the oldest first."""
    found: dict[tuple[str, str], list[StartedJob]] = {}
    for event in events:
        if event["event"] == "retry":
            for key in [key for key in found if key[0] == event["cell"]]:
                del found[key]
        elif event["event"] == "submitted" and "cell" in event:
            given = {"code": event.get("code", ""), "mem_gb": event.get("mem_gb")}
            jobs = [StartedJob(job, known.get(job), **given) for job in event["jobs"]]
            found.setdefault((event["cell"], event["identity"]), []).extend(jobs)
    return found
