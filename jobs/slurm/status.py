"""The status of a grid on Slurm: the plan, the ledger and the queue compared. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobs.planning.plan import Plan, PlannedCell
from jobs.planning.status import GridStatus, JobState, StartedJob, Want, cell_status
from jobs.slurm.endings import ending
from jobs.slurm.queue import states
from jobs.slurm.records import Submitted, open_intents, submitted_jobs
from pipeline.storage.jsonl import read_jsonl

_STUCK = "launch failed requeued held"
Jobs = dict[tuple[str, str], list[StartedJob]]  # of each (cell, identity), the oldest first


def read_grid_status(plan: Plan, wants: Mapping[str, Want]) -> GridStatus:
    """By one squeue and at most one sacct in all, and only about cells that files do not prove to be done.

    `wants` is how each cell (by folder name) would be run now. Nothing that Slurm does not say is an error here.
    """
    events = read_jsonl(plan.experiment.ledger)
    missing = {cell.run.name: cell for cell in plan.missing}
    stages = [event for event in events if event["event"] == "submitted" and "stage" in event]
    asked = {job for event in events if event.get("cell") in missing for job in submitted_jobs(event)}
    asked |= {job for event in stages[-50:] for job in submitted_jobs(event)}
    answers = states(asked)
    folder = plan.experiment.slurm
    known = {
        job: replace(state, ending=ending(job.job, state, folder)) for job, state in answers.states.items()
    }
    jobs = _jobs_of_cells(events, known, missing, answers.cluster)
    cells = [
        cell_status(cell, jobs.get((cell.run.name, cell.identity), ()), wants.get(cell.run.name, Want()))
        for cell in plan.cells
    ]
    active = [
        (event, job)
        for event in stages
        for job in submitted_jobs(event)
        if job in known and known[job].active
    ]
    final = {job: event for event, job in active if event["stage"] == "final"}
    alive = [job for job, state in known.items() if state.active]
    return GridStatus(
        cells,
        # of one that nobody can see nothing is awaited: it may be gone, and packing twice does no harm
        wrangle_jobs={
            packed: job.job
            for event, job in active
            if event["stage"] == "wrangle" and known[job].state != "unknown"
            for packed in event["packed"]
        },
        final_jobs={job.job: known[job] for job in final},
        submits=any(event.get("submission") for event in final.values()),
        notes=answers.notes,
        silent=answers.silent,
        blind=answers.blind,
        stuck=tuple(job.job for job in alive if _STUCK in known[job].reason.lower()),
        queued=sum(known[job].state != "unknown" for job in alive),
        proven={job.job: job for job in alive},
        broken_off=len(open_intents(events)),
    )


def last_jobs(events: Iterable[Mapping[str, Any]]) -> dict[str, Submitted]:
    """The newest job of each cell (by folder name) since its last retry."""
    found: dict[str, Submitted] = {}
    for event in events:
        if event["event"] == "retry":
            found.pop(event["cell"], None)
        elif "cell" in event and (jobs := submitted_jobs(event)):
            found[event["cell"]] = jobs[-1]
    return found


def _jobs_of_cells(
    events: Sequence[Mapping[str, Any]],
    known: Mapping[Submitted, JobState],
    missing: Mapping[str, PlannedCell],
    here: str,
) -> Jobs:
    """The jobs of each cell since its last retry."""
    found: Jobs = {}
    for event in events:
        if event["event"] == "retry":
            for key in [key for key in found if key[0] == event["cell"]]:
                del found[key]
        elif event["event"] == "submitted" and "cell" in event:
            proven = submitted_jobs(event)
            given = {"settings": event.get("settings", ""), "mem_gb": event.get("mem_gb")}
            for job in proven:
                state = known.get(job)
                if state is not None and state.state == "unknown" and _has_failed_since(event, missing):
                    state = None
                elsewhere = here not in ("", job.proof.cluster)
                whose = f"of cluster {job.proof.cluster}, not of {here}" if elsewhere else "unknown to Slurm"
                note = "" if state else f"its job {job.job} is {whose}"
                found.setdefault((event["cell"], event["identity"]), []).append(
                    StartedJob(job.job, state, note=note, **given)
                )
            if not proven:  # of an earlier version
                note = f"its job {', '.join(event['jobs'])} cannot be proven to be ours"
                found.setdefault((event["cell"], event["identity"]), []).append(StartedJob("", note=note))
    return found


def _has_failed_since(event: Mapping[str, Any], missing: Mapping[str, PlannedCell]) -> bool:
    """Whether the cell of a job that nobody can see says itself that it has failed."""
    cell = missing.get(event["cell"])
    if cell is None or not (cell.reason or "").startswith("failed: "):
        return False
    try:
        begun = time.mktime(time.strptime(str(event.get("time"))[:19], "%Y-%m-%dT%H:%M:%S"))
        return cell.run.manifest.stat().st_mtime > begun
    except (OSError, ValueError):
        return False
