"""`make grid` and `make submission` on a Slurm cluster: submit what is missing, leave nothing running here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs.clusters.profile import Profile
from jobs.commands.data_lines import all_data, data_lines
from jobs.commands.request import Request
from jobs.commands.run import FAILED, fetch_weights, plural, rank, selected, tell
from jobs.local.snapshot import snapshot
from jobs.planning.cost import estimate
from jobs.planning.overlaps import check_test_sets
from jobs.planning.plan import Plan, data_root, make_plan
from jobs.planning.status import GridStatus
from jobs.planning.tasks import resources_for, submission_task
from jobs.slurm.batches import Batch, build_batches
from jobs.slurm.queue import cancel, max_array_size
from jobs.slurm.sbatch import Submitter, launch_lock, refuse_early
from jobs.slurm.status import read_grid_status
from pipeline.errors import SpecError, SubmissionError
from pipeline.storage.files import display_path
from pipeline.storage.provenance import code


def grid(request: Request) -> int:
    """Queue everything that is neither complete nor active, up to the leaderboard."""
    return _submit(request, submission=False)


def submission(request: Request) -> int:
    """Queue everything up to the checked submission.csv."""
    return _submit(request, submission=True)


def _submit(request: Request, *, submission: bool) -> int:
    plan = make_plan(request.loaded)
    if submission and len(plan.tests) < len(plan.cells):
        raise SubmissionError(
            f"{display_path(plan.loaded.path)}: there are no images to predict; "
            "add data.test or a test fraction to data.split"
        )
    link_storage(plan, request.profile)
    with launch_lock(plan.experiment):
        plan = make_plan(request.loaded)  # once more: another submission may just have ended
        grid_status = grid_status_of(request, plan)
        _print_plan(request, plan, grid_status)
        tell([*check_test_sets(plan), *plan.gone, *plan.changed, *plan.longer])
        batches = batches_of(request, plan, grid_status, submission=submission)
        if not batches and grid_status.of("active"):
            print(f"all is queued already; evaluate waits as job {next(iter(grid_status.final_jobs))}")
            return 0
        if not batches:
            status, batches = _rank_and_submit(request, plan, grid_status, submission=submission)
            if not batches:
                return status
        refuse_early(request.profile, request.cluster, batches)
        _within_budget(request, plan, grid_status)
        status = fetch_weights(plan)
        if status:
            return status
        frozen = snapshot(plan.experiment.code)
        plan.experiment.slurm.mkdir(parents=True, exist_ok=True)
        submitter = Submitter(request.profile, request.cluster, plan.experiment, frozen, code()["digest"])
        ids = submitter.submit(batches)
        plan.remember_data()
        cancel(grid_status.final_jobs)  # the new final job waits for their cells too
    for batch in batches:
        jobs = ids[batch.key]
        cells = sum(len(group) for group in batch.cells)
        what = f" ({plural(cells, 'cell')} in {plural(len(jobs), 'job')})" if cells else ""
        print(f"queued {batch.key}: {jobs[0].split('_')[0]}{what}")
    print(
        f"All jobs are queued. Check them with `{request.command('status')}`.",
        flush=True,
    )
    return 0


def grid_status_of(request: Request, plan: Plan) -> GridStatus:
    """How every cell stands, asking Slurm where files do not prove it."""
    mem_gb = {cell.run.name: resources_for(cell, request.profile).train.mem_gb for cell in plan.missing}
    return read_grid_status(plan, mem_gb=mem_gb, code=code()["digest"])


def batches_of(request: Request, plan: Plan, grid_status: GridStatus, *, submission: bool) -> list[Batch]:
    """The jobs to submit; [] when nothing is missing that is not active."""
    # a submission asked for while a plain grid is active needs a final job that does more
    final_job_suffices = bool(grid_status.final_jobs) and not (submission and not grid_status.submits)
    if not grid_status.of("pending") and (not grid_status.of("active") or final_job_suffices):
        return []
    return _build_batches(request, plan, grid_status, submission=submission)


def _build_batches(request: Request, plan: Plan, grid_status: GridStatus, *, submission: bool) -> list[Batch]:
    max_array = request.profile.max_array or max_array_size()
    return build_batches(plan, request.profile, grid_status, max_array=max_array, submission=submission)


def link_storage(plan: Plan, profile: Profile) -> None:
    """Where the profile keeps runs or packed data elsewhere, make links to those places; code stays where it is."""
    for path, root in (
        (plan.experiment.path, profile.runs_root),
        (data_root(plan.root) / "packed", profile.data_root),
    ):
        if root is None or path.is_symlink():
            continue
        target = Path(root).expanduser() / path.name
        if path.exists():
            raise SpecError(
                f"{path}: exists already; move it to {target} and link it, or unset it in the profile"
            )
        target.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)


def _print_plan(request: Request, plan: Plan, grid_status: GridStatus) -> None:
    if request.profile.retired:
        print(f"note: {request.profile.retired}")
    counts = {kind: len(grid_status.of(kind)) for kind in ("pending", "active", "held")}
    print(
        f"{display_path(plan.loaded.path)}: {plural(len(plan.cells), 'cell')}, {counts['pending']} to submit, "
        f"{counts['active']} active, {counts['held']} held back",
        flush=True,
    )
    shown_cells = [cell for cell in grid_status.cells if cell.kind != "done"]
    for cell in shown_cells[:50]:
        job = f" (job {cell.job})" if cell.job and cell.kind != "pending" else ""
        print(f"  {cell.planned.run.name}: {cell.why}{job}")
    if len(shown_cells) > 50:
        print(f"  ... and {len(shown_cells) - 50} more")
    for data in all_data(plan) if counts["pending"] else ():
        print(data_lines(data), flush=True)


def _within_budget(request: Request, plan: Plan, grid_status: GridStatus) -> None:
    budget = request.loaded.spec.run.budget_units
    if budget is None:
        return
    cost = estimate(plan, request.profile, [cell.planned for cell in grid_status.of("pending")])
    if cost.units is not None and cost.units > budget:
        raise SpecError(
            f"{display_path(plan.loaded.path)}: the cells to submit would cost about {cost.units:.1f} {cost.unit}, "
            f"run.budget_units allows {budget:g}; raise it, or submit fewer cells"
        )


def _rank_and_submit(
    request: Request, plan: Plan, grid_status: GridStatus, *, submission: bool
) -> tuple[int, list[Batch]]:
    """With every cell done: the leaderboard, made here (it is light), and the job of a submission if asked."""
    reasons = {cell.planned.run.name: cell.why for cell in grid_status.of("held")}
    status = rank(request, reasons) or (FAILED if reasons else 0)
    if not submission:
        return status, []
    from pipeline.evaluation.submission import is_predicted

    chosen = selected(plan, request.run)
    known = plan.tests_of_others | plan.tests
    for run in chosen:
        if run.name not in known or (run.name not in plan.tests and known[run.name].reason is not None):
            raise SubmissionError(
                f"{run.name}: is a cell of an earlier spec, and its test images are not packed; submit it under that "
                f"spec or SET, or pick a cell of {display_path(plan.loaded.path)}: `{request.command('select')}`"
            )
    tests = {run: known[run.name] for run in chosen}
    task = submission_task(plan, tests)
    if all(t.reason is None and is_predicted(run, t.packed, t.split) for run, t in tests.items()):
        return task() or status, []
    batches = _build_batches(request, plan, grid_status, submission=True)
    (final_job,) = batches[-1].tasks
    last = replace(batches[-1], tasks=(replace(final_job, submission=task),))
    return status, [*batches[:-1], last]
