"""Controlling jobs and results: cancel, retry. Nothing a selection or a resume needs is lost."""

from __future__ import annotations

import time

from jobs import ledger
from jobs.commands import run, submit
from jobs.commands.request import Request
from jobs.planning.plan import make_plan
from jobs.slurm.queue import cancel as cancel_jobs
from jobs.slurm.sbatch import launch_lock
from pipeline.errors import SpecError
from pipeline.storage.files import display_path


def cancel(request: Request) -> int:
    """Cancel the jobs of a spec that are queued or running (RUN=cell: that cell's)."""
    plan = make_plan(request.loaded)
    if request.profile.scheduler == "local":
        raise SpecError("cells of CLUSTER=local stop with Ctrl-C where `make grid` runs")
    with launch_lock(plan.experiment):
        grid_status = submit.grid_status_of(request, plan)
        chosen = plan.experiment.find(request.run).name if request.run else None
        active = [cell for cell in grid_status.of("active") if chosen in (None, cell.planned.run.name)]
        jobs = {str(cell.job) for cell in active}
        if chosen is None:
            jobs |= {*grid_status.wrangle_jobs.values(), *grid_status.final_jobs}
        cancel_jobs(jobs)
        ledger.append(plan.experiment.ledger, "cancelled", jobs=sorted(jobs))
    print(f"cancelled {run.plural(len(jobs), 'job')} ({run.plural(len(active), 'cell')})")
    return 0


def retry(request: Request) -> int:
    """Train RUN=cell anew from its first step; what it was is kept under `replaced/` until `make prune`."""
    if not request.run:
        raise SpecError("name the cell: RUN=<folder name or unique prefix>")
    plan = make_plan(request.loaded)
    run = plan.experiment.find(request.run)
    with launch_lock(plan.experiment):
        if request.profile.scheduler == "slurm":
            for cell in submit.grid_status_of(request, plan).of("active"):
                if cell.planned.run == run:
                    raise SpecError(
                        f"{run.name} is still running as job {cell.job}; `make cancel RUN={run.name}` first"
                    )
        with run.owned():
            kept = plan.experiment.path / "replaced" / f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
            kept.parent.mkdir(exist_ok=True)
            run.path.rename(kept)
        ledger.append(plan.experiment.ledger, "retry", cell=run.name)
    print(f"{run.name}: moved to {display_path(kept)}; `make grid` trains it anew")
    return 0
