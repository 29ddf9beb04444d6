"""A stage of a verb on this machine: in a process of its own, or a prediction in several."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from jobs import ledger
from jobs.local.processes import Job, run_jobs
from jobs.local.progress import Progress
from jobs.local.slots import Slots
from jobs.local.snapshot import snapshot
from jobs.planning.plan import Plan
from jobs.stages import EXIT_RANK_LOST, EXIT_STOPPED, PredictTask, Task
from pipeline.storage.files import display_path
from pipeline.storage.run_dir import rank_log

FAILED = 1


def run_stage(plan: Plan, name: str, task: Task, log_name: str | None = None, *, ranks: int = 1) -> int:
    """One stage in a process of its own, or a prediction in up to `ranks`; on failure its error is repeated here.

    Its log is called as the first word of `name`, where it has no name of its own.
    """
    log = plan.experiment.logs / f"{log_name or name.split()[0]}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    for rank in range(ranks):
        rank_log(log, rank).unlink(missing_ok=True)
    ledger.append(plan.experiment.ledger, "started", stage=name, cluster="local")
    run = plan.loaded.spec.run
    slots = Slots.for_stage(run.threads, run.device, ranks=ranks)
    if isinstance(task, PredictTask):
        task = replace(task, ranks=slots.ranks)
    code = snapshot(plan.experiment.code)
    outcome = run_jobs([Job(name, task, log)], slots, Progress("stages", 1), code=code)
    status = outcome.status.get(name, EXIT_STOPPED)
    ledger.append(plan.experiment.ledger, "ended", stage=name, status=status)
    if status not in (0, EXIT_STOPPED):
        said = "" if status == EXIT_RANK_LOST else _error_text(log)
        text = said or outcome.words[name]
        print(f"error: {name} failed: {text}\nlog: {display_path(log)}", file=sys.stderr)
    return FAILED if status else 0


def _error_text(log: Path) -> str:
    """The whole error of a stage, which can be several lines; "" where its log has none."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    _, found, error = text.rpartition("error: ")
    return error.strip() if found else ""
