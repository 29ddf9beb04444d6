"""Controlling jobs and results: cancel, retry. Nothing a selection or a resume needs is lost."""

from __future__ import annotations

import time

from jobs import ledger
from jobs.commands import run, submit
from jobs.commands.request import Request
from jobs.commands.stage import FAILED
from jobs.planning.plan import find_cell, make_plan
from jobs.slurm.endings import ENDING
from jobs.slurm.queue import cancel as cancel_jobs
from jobs.slurm.recovery import recover
from jobs.slurm.sbatch import launch_lock
from pipeline.errors import LaunchError, SpecError
from pipeline.storage.files import display_path
from pipeline.storage.jsonl import read_jsonl


def cancel(request: Request) -> int:
    """Cancel the jobs of a spec that are queued or running (--run: that cell's)."""
    plan = make_plan(request.loaded)
    if request.profile.scheduler == "local":
        raise SpecError("cells of this machine stop with Ctrl-C where `grid` runs")
    with launch_lock(plan.experiment):
        run.tell(recover(plan.experiment))
        grid_status = submit.grid_status_of(request, plan)
        if grid_status.silent:
            raise LaunchError(f"{'; '.join(grid_status.notes)}. Nothing is cancelled; try again later")
        chosen = find_cell(plan, request.run).name if request.run else None
        active = [cell for cell in grid_status.of("active") if chosen in (None, cell.planned.run.name)]
        events = read_jsonl(plan.experiment.ledger)
        numbers = {str(cell.job) for cell in active}
        shared = [c for c in grid_status.of("active") if c.job in numbers and c not in active]
        if shared:
            names = ", ".join(cell.planned.run.name for cell in shared)
            print(f"job {', '.join(sorted(numbers))} trains other cells too, which end with it: {names}")
        # continuations of the same cells, which would begin where the cancelled ones end
        numbers |= {
            str(job)
            for event in events
            if event["event"] == "submitted"
            and event.get("cell") in {cell.planned.run.name for cell in active}
            for job in event["jobs"]
        }
        if chosen is None:
            numbers |= {*grid_status.wrangle_jobs.values(), *grid_status.final_jobs}
        hidden = {
            grid_status.proven[str(cell.job)]: f"job {cell.job}: {cell.why}; only its owner can cancel it"
            for cell in active
            if cell.state is not None and cell.state.state == "unknown" and cell.job in grid_status.proven
        }
        problems = hidden | cancel_jobs(
            grid_status.proven[n] for n in sorted(numbers) if n in grid_status.proven
        )
        ledger.append(plan.experiment.ledger, "cancelled", jobs=sorted(numbers))
    left = {job.job for job in problems}
    ended = [cell for cell in (*active, *shared) if cell.job not in left]
    jobs = {str(cell.job) for cell in active}
    if chosen is None:
        jobs |= {*grid_status.wrangle_jobs.values(), *grid_status.final_jobs}
    print(f"cancelled {run.plural(len(jobs - left), 'job')} ({run.plural(len(ended), 'cell')})")
    for problem in problems.values():
        print(f"not cancelled: {problem}")
    return FAILED if problems else 0


def retry(request: Request) -> int:
    """Train the cell of --run anew from its first step; what it was is kept under `replaced/` until `prune`."""
    if not request.run:
        command = request.command(run="CELL")
        raise SpecError(f"name the cell, its folder or a unique prefix of it: `{command}`")
    plan = make_plan(request.loaded)
    cell = find_cell(plan, request.run)
    with launch_lock(plan.experiment):
        if request.profile.scheduler == "slurm":
            grid_status = submit.grid_status_of(request, plan)
            for active in grid_status.of("active"):
                # a job that is hidden, or that no queue lists, is believed to be gone by whoever asks for this
                hidden = active.state is not None and active.state.state in ("unknown", ENDING)
                if active.planned.run == cell and grid_status.blind:
                    raise LaunchError(
                        f"{'; '.join(grid_status.notes)}. {cell.name} may be queued; try again later"
                    )
                if active.planned.run == cell and not hidden:
                    raise SpecError(
                        f"{cell.name} is still running as job {active.job}; "
                        f"`{request.command('cancel', run=cell.name)}` first"
                    )
        what = "it has no folder yet"
        if cell.path.exists():
            with cell.owned():
                kept = plan.experiment.path / "replaced" / f"{cell.name}-{time.strftime('%Y%m%d-%H%M%S')}"
                kept.parent.mkdir(exist_ok=True)
                cell.path.rename(kept)
            what = f"moved to {display_path(kept)}"
        ledger.append(plan.experiment.ledger, "retry", cell=cell.name)
    print(f"{cell.name}: {what}; `{request.command('grid')}` trains it anew")
    return 0
