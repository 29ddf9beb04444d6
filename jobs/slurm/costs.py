"""What the jobs of an experiment have cost: elapsed time x what was reserved x the site's price. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs import ledger
from jobs.clusters.billing import billing_of, price, reserved_by
from jobs.clusters.profile import Profile
from jobs.slurm.commands import ask
from jobs.slurm.endings import accounted_state
from jobs.slurm.queue import expand
from jobs.slurm.records import Proof, Submitted, submitted_jobs
from pipeline.errors import PipelineError
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir

Units = dict[str, float]  # by the name of the unit
Key = tuple[str, str]  # a job's name and number
_COLUMNS = "JobID,User,State,ElapsedRaw,AllocTRES,Partition,Cluster,JobName,WorkDir"


def in_words(units: Mapping[str, float]) -> str:
    """`12.5 GPU BU + 3.0 CPU BU`."""
    return " + ".join(f"{value:.1f} {unit}" for unit, value in units.items()) or "nothing"


@dataclass(frozen=True)
class Cost:
    """What a job has taken so far."""

    cells: tuple[str, ...]  # that it was for, () for a stage
    hours: float
    units: float | None  # None where its price is not known
    unit: str
    is_over: bool = True


def actual_costs(experiment: ExperimentDir, profile: Profile) -> dict[Key, Cost]:
    """Of each job of the ledger: as recorded there, else by one sacct (elapsed x what was reserved x price).

    Raises SlurmSilentError where accounting does not answer.
    """
    events = read_jsonl(experiment.ledger)
    cells: dict[Submitted, list[str]] = {}
    for event in events:
        for job in submitted_jobs(event):
            cells.setdefault(job, []).extend([event["cell"]] if "cell" in event else [])
    found = {
        (event["name"], event["job"]): Cost(
            tuple(event["cells"]), event["hours"], event["units"], event["unit"]
        )
        for event in events
        if event["event"] == "cost"
    }
    asked = {job: names for job, names in cells.items() if _key(job) not in found}
    return found | (_accounted(asked, profile) if asked else {})


def _key(job: Submitted) -> Key:
    return job.proof.name, job.job


def _accounted(asked: Mapping[Submitted, list[str]], profile: Profile) -> dict[Key, Cost]:
    wanted = {(job.job, job.proof): names for job, names in asked.items()}
    bases = ",".join(sorted({job.job.split("_")[0] for job in asked}))
    found: dict[Key, Cost] = {}
    for line in ask("sacct", "-X", "-D", "-n", "-P", "-j", bases, "-o", _COLUMNS).splitlines():
        fields = line.split("|", 8)
        if len(fields) < 9 or not fields[3].isdigit():
            continue
        numbers, user, state, elapsed, tres, partition, *proof = fields
        billing = billing_of(partition, profile)
        hours = int(elapsed) / 3600
        for number in expand(numbers):
            names = wanted.get((number, Proof(proof[0], proof[1], user, proof[2])))
            if names is None:
                continue
            key = (proof[1], number)
            before = found.get(key, Cost((), 0.0, 0.0, ""))  # a run before it was requeued
            hourly = None if billing is None else price(reserved_by(tres), billing)
            units = None if hourly is None else (before.units or 0.0) + hours * hourly
            over = not accounted_state(state.split(" ")[0]).active
            unit = billing.unit if billing else ""
            found[key] = Cost(tuple(names), before.hours + hours, units, unit, over)
    return found


def record_costs(experiment: ExperimentDir, profile: Profile) -> None:
    """Write into the ledger what the jobs that are over have cost. Where accounting is silent, nothing."""
    events = read_jsonl(experiment.ledger)
    recorded = {(event["name"], event["job"]) for event in events if event["event"] == "cost"}
    try:
        costs = actual_costs(experiment, profile)
        lines = [
            {"event": "cost", "name": name, "job": job, "cells": list(cost.cells), "hours": cost.hours}
            | {"units": cost.units, "unit": cost.unit}
            for (name, job), cost in costs.items()
            if cost.is_over and (name, job) not in recorded
        ]
        ledger.append_all(experiment.ledger, lines)
    except (PipelineError, OSError, ValueError) as error:  # the leaderboard is what matters
        print(f"note: what the jobs have cost is not known ({error})", flush=True)


def by_unit(costs: Iterable[Cost]) -> Units:
    """Their sum."""
    found: Units = defaultdict(float)
    for cost in costs:
        if cost.units is not None:
            found[cost.unit] += cost.units
    return found


def by_cell(costs: Iterable[Cost]) -> dict[str, Cost]:
    """What each cell has taken, its share of jobs with several cells included."""
    found: dict[str, Cost] = {}
    for cost in costs:
        for name in cost.cells:
            before, share = found.get(name), 1 / len(cost.cells)
            hours = (before.hours if before else 0.0) + cost.hours * share
            known = [c.units for c in (before,) if c and c.units is not None]
            units = None if cost.units is None else sum(known) + cost.units * share
            found[name] = Cost((name,), hours, units, cost.unit)
    return found


def estimates(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What each cell was estimated to cost when it was last submitted."""
    return {
        event["cell"]: float(event["estimate"])
        for event in events
        if event["event"] == "submitted" and "cell" in event and "estimate" in event
    }
