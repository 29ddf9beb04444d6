"""`grid` and `submission` on a Slurm cluster: submit what is missing, leave nothing running here."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.clusters.billing import requested, unit_of
from jobs.clusters.profile import Profile
from jobs.commands.data_lines import all_data, data_lines
from jobs.commands.request import Request
from jobs.commands.run import fetch_weights, plural, rank, selected, tell
from jobs.commands.stage import FAILED
from jobs.local.snapshot import snapshot
from jobs.planning.earlier import forgotten, longer
from jobs.planning.overlaps import check_test_sets
from jobs.planning.own_code import freeze_own
from jobs.planning.plan import Plan, data_root, make_plan
from jobs.planning.status import CellStatus, GridStatus
from jobs.planning.tasks import resources_for, submission_task
from jobs.slurm.batches import Batch, build_batches
from jobs.slurm.commands import SlurmSilentError, foreign_options, this_cluster
from jobs.slurm.costs import actual_costs, by_unit
from jobs.slurm.endings import ENDING
from jobs.slurm.forecast import Forecast, committed, forecast
from jobs.slurm.job import CellJob
from jobs.slurm.options import Options, want_of
from jobs.slurm.queue import cancel, release
from jobs.slurm.recovery import recover
from jobs.slurm.refusals import refuse_early
from jobs.slurm.sbatch import Launch, launch_lock
from jobs.slurm.status import read_grid_status
from pipeline.errors import LaunchError, SpecError, SubmissionError
from pipeline.storage.files import display_path
from pipeline.storage.provenance import code

_ENDING_S = 90.0  # Slurm gives a job that is ended 30 s (KillWait), sites often more


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
        tell(recover(plan.experiment))
        plan = make_plan(request.loaded)  # once more: another submission may just have ended
        grid_status = _settled(request, plan)
        tell(release(grid_status.proven[job] for job in grid_status.stuck))
        _print_plan(request, plan, grid_status)
        tell([*check_test_sets(plan), *plan.gone, *plan.changed, *longer(plan), *forgotten(plan)])
        batches = batches_of(request, plan, grid_status, submission=submission)
        if not batches and _is_queued(grid_status, submission=submission):
            job, state = next(iter(grid_status.final_jobs.items()))
            verb = "runs" if state.state == "running" else "waits"
            print(f"all is queued already; evaluate {verb} as job {job}")
            return 0
        if not batches:
            status, batches = _rank_and_submit(request, plan, grid_status, submission=submission)
            if not batches:
                return status
        return _queue(request, plan, grid_status, batches)


def _queue(request: Request, plan: Plan, grid_status: GridStatus, batches: Sequence[Batch]) -> int:
    """Submit the batches, then cancel the final jobs that the new one replaces."""
    profile = request.profile
    refuse_early(profile, request.cluster, batches, plan.experiment.slurm)
    cost = within_budget(request, plan, grid_status, batches)
    tell([*environment_notes(), *idle_gpus(batches)])
    if status := fetch_weights(plan):
        return status
    frozen = snapshot(plan.experiment.code)
    freeze_own((cell.code for cell in plan.cells), plan.experiment.code)
    plan.experiment.slurm.mkdir(parents=True, exist_ok=True)
    options = options_of(request, plan, frozen)
    launch = Launch(options, cost.of_cells)
    ids = launch.submit(batches)
    plan.remember_data()
    tell(launch.notes)
    _replace_final_jobs(plan, grid_status)
    for batch in batches:
        jobs = ids[batch.key]
        cells = sum(len(group) for group in batch.cells)
        what = f" ({plural(cells, 'cell')} in {plural(len(jobs), 'job')})" if cells else ""
        print(f"queued {batch.key}: {jobs[0].split('_')[0]}{what}")
    account = f" under account {profile.account} ({profile.account_source})" if profile.account else ""
    print(cost.text())
    print(f"All jobs are queued{account}. Check them with `{request.command('status')}`.", flush=True)
    return 0


def _replace_final_jobs(plan: Plan, grid_status: GridStatus) -> None:
    """Cancel those that are queued: the new final job waits for their cells too."""
    jobs = [grid_status.proven[job] for job in grid_status.final_jobs]
    try:
        tell(cancel(jobs).values())
    except LaunchError as error:  # each ranks what is there when it runs
        tell([f"the final job {', '.join(job.job for job in jobs)} of before stays queued ({error})"])


def options_of(request: Request, plan: Plan, frozen: Path) -> Options:
    """What all jobs of a new submission have in common."""
    digest = code()["digest"]
    return Options(request.profile, request.cluster, plan.experiment, frozen, digest, secrets.token_hex(3))


def environment_notes() -> list[str]:
    """That variables of this shell, or of the job it is in, do not reach what is submitted."""
    dropped = foreign_options(os.environ)
    given = [
        f"{name}={value}"
        for name, value in sorted(dropped.items())
        if not name.startswith(("SLURM", "SALLOC"))
    ]
    job = dropped.get("SLURM_JOB_ID")
    notes = []
    if given:
        notes.append(f"of this shell, jobs are submitted without {', '.join(given)}")
    if job:
        notes.append(f"this runs inside job {job}; nothing of that job's settings reaches what is submitted")
    return notes


def idle_gpus(batches: Iterable[Batch]) -> list[str]:
    """GPUs that a job reserves and none of its cells uses."""
    return list(
        dict.fromkeys(
            f"{batch.key}: a job reserves {gpus} GPUs and trains {task.concurrent_cells} at once, on "
            f"{plural(task.gpus, 'GPU')} each: {gpus - at_once} stay idle (cluster.concurrent_cells, fewer GPUs)"
            for batch in batches
            for task in batch.tasks
            if isinstance(task, CellJob)
            and (gpus := requested(batch.resources).gpus) > (at_once := task.concurrent_cells * task.gpus)
        )
    )


def grid_status_of(request: Request, plan: Plan) -> GridStatus:
    """How every cell stands, asking Slurm where files do not prove it."""
    digest = code()["digest"]
    usual = want_of(request.profile, digest)  # of the cells that no rule of run.resources changes
    wants = {}
    for cell in plan.missing:
        own = resources_for(cell, request.profile)
        wants[cell.run.name] = usual if own is request.profile else want_of(own, digest)
    return read_grid_status(plan, wants)


def _settled(request: Request, plan: Plan) -> GridStatus:
    """The same, once jobs that are ending have ended; a LaunchError where nothing can be known."""
    deadline, said = time.monotonic() + _ENDING_S, False
    while True:
        status = grid_status_of(request, plan)
        if status.silent and any(cell.kind == "active" for cell in status.cells):
            raise SlurmSilentError(
                f"{'; '.join(status.notes)}. It cannot be known which cells are queued, so nothing is submitted; "
                "try again later"
            )
        ending = [cell for cell in status.of("active") if cell.state and cell.state.is_ending]
        if not ending or time.monotonic() > deadline:
            tell(status.notes)
            return replace(status, cells=[_over(cell) for cell in status.cells])
        if not said:
            print(f"waiting for {plural(len(ending), 'cell')} whose jobs are ending", flush=True)
        said = True
        time.sleep(1)


def _over(cell: CellStatus) -> CellStatus:
    """A cell whose job is in no queue any more is not active, even if accounting never hears of its end."""
    if cell.kind == "active" and cell.state is not None and cell.state.state == ENDING:
        return replace(cell, kind="pending", why="its job is not queued any more; nobody knows how it ended")
    return cell


def _is_queued(grid_status: GridStatus, *, submission: bool) -> bool:
    """Whether a final job that does all that is asked for is queued or running."""
    # a submission asked for while a plain grid is active needs a final job that does more; of one that Slurm does
    # not speak of nothing is known
    seen = any(state.state not in ("unknown", ENDING) for state in grid_status.final_jobs.values())
    waits = seen or (bool(grid_status.final_jobs and grid_status.of("active")) and not grid_status.silent)
    return waits and not (submission and not grid_status.submits)


def batches_of(request: Request, plan: Plan, grid_status: GridStatus, *, submission: bool) -> list[Batch]:
    """The jobs to submit; [] when nothing is missing that is not active."""
    final_job_suffices = _is_queued(grid_status, submission=submission)
    if not grid_status.of("pending") and (not grid_status.of("active") or final_job_suffices):
        return []
    return build_all(request, plan, grid_status, submission=submission)


def build_all(request: Request, plan: Plan, grid_status: GridStatus, *, submission: bool) -> list[Batch]:
    """The jobs that complete the plan, or write the submission of a complete one."""
    profile = request.profile
    if profile.requeue and shutil.which("sbatch") and shutil.which("scontrol") is None:
        tell(["scontrol is not here, so jobs cannot be requeued: continuation jobs are queued instead"])
        profile = profile.model_copy(update={"requeue": False})
    max_array = profile.max_array
    if max_array is None:
        try:
            max_array = this_cluster().max_array
        except LaunchError:
            max_array = 1000
    return build_batches(plan, profile, grid_status, max_array=max_array, submission=submission)


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


def within_budget(
    request: Request, plan: Plan, grid_status: GridStatus, batches: Sequence[Batch]
) -> Forecast:
    """What the batches will cost; a SpecError where that may be more than what is left of run.budget_units."""
    profile, budget = request.profile, request.loaded.spec.run.budget_units
    cost = forecast(plan, profile, batches, request.cluster)
    if budget is None:
        return cost
    place = f"{display_path(plan.loaded.path)}: run.budget_units allows {budget:g}"
    if cost.unknown:
        raise SpecError(f"{place}, but the {cost.text()}; write cluster.billing, or no budget")
    queued = committed(plan, profile, grid_status.of("active"), request.cluster)
    try:
        spent = by_unit(actual_costs(plan.experiment, profile).values())
    except SlurmSilentError as error:
        raise LaunchError(
            f"{place}, and what is spent already is not known ({error}); try again later"
        ) from error
    for unit in sorted(cost.trained_in or {unit_of(profile.train, profile)}):
        parts = [units.get(unit, 0.0) for units in (spent, queued, cost.about)]
        if sum(parts) > budget:
            raise SpecError(
                f"{place} {unit}; {parts[0]:.1f} are spent, {parts[1]:.1f} may go to cells that are queued, and the "
                f"jobs to submit may take {parts[2]:.1f} ({cost.text()}); raise it, or submit fewer cells or with "
                "shorter time limits"
            )
    return cost


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
                f"spec or --set, or pick a cell of {display_path(plan.loaded.path)}: `{request.command('select')}`"
            )
    tests = {run: known[run.name] for run in chosen}
    task = submission_task(plan, tests)
    if all(t.reason is None and is_predicted(run, t.packed, t.split) for run, t in tests.items()):
        return task() or status, []
    batches = build_all(request, plan, grid_status, submission=True)
    (final_job,) = batches[-1].tasks
    last = replace(batches[-1], tasks=(replace(final_job, submission=task),))
    return status, [*batches[:-1], last]
