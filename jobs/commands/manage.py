"""Controlling jobs and results: cancel, retry, prune. Nothing a selection or a resume needs is lost."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from jobs import ledger
from jobs.commands import run, submit
from jobs.commands.request import Request
from jobs.planning.plan import make_plan
from jobs.slurm.queue import cancel as cancel_jobs
from jobs.slurm.queue import states
from jobs.slurm.sbatch import launch_lock
from pipeline.errors import SpecError
from pipeline.storage.files import display_path, write_json
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir, RunDir


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


def prune(request: Request) -> int:
    """Delete what neither a selection nor a resume needs: training states, kept features, replaced cells, old jobs."""
    plan = make_plan(request.loaded)
    experiment = plan.experiment
    with launch_lock(experiment):
        freed = sum(_training_states(cell.run) for cell in plan.cells if cell.reason is None)
        freed += _remove(experiment.path / "replaced")
        freed += sum(_remove(data.packed / "features") for data in plan.datasets)  # made again where needed
        if request.profile.scheduler == "slurm":
            freed += _ended_jobs(experiment)
    print(f"freed {freed / 1e6:.1f} MB in {display_path(experiment.path)}")
    return 0


def _training_states(run: RunDir) -> int:
    """A finished cell needs no state to resume from; its best checkpoint stays."""
    manifest = run.read_manifest()
    freed = 0
    for path in (run.checkpoint_last, run.checkpoint_previous):
        if manifest["files"].pop(path.name, None) is not None:
            # first: a file that is gone and still listed would mean damage
            write_json(run.manifest, manifest)
            freed += _remove(path)
    return freed


def _ended_jobs(experiment: ExperimentDir) -> int:
    """submitit's files of jobs that have ended, and code that no active job runs from."""
    jobs = [job for e in read_jsonl(experiment.ledger) if e["event"] == "submitted" for job in e["jobs"]]
    active = {job for job, state in states(jobs).items() if state.active}
    bases = {job.split("_")[0] for job in active}
    freed = 0
    for path in experiment.slurm.glob("*") if experiment.slurm.exists() else ():
        if path.name.split("_")[0] not in bases:
            freed += _remove(path)
    if not active:
        freed += _remove(experiment.code)
    return freed


def _remove(path: Path) -> int:
    """Bytes freed."""
    if path.is_dir() and not path.is_symlink():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
        return size
    if not (path.exists() or path.is_symlink()):
        return 0
    size = path.lstat().st_size
    path.unlink()
    return size
