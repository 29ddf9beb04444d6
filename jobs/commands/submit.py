"""`make grid` and `make submission` on a Slurm cluster: submit what is missing, leave nothing running here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs.clusters.profile import Profile
from jobs.commands import run as here
from jobs.commands.request import Request
from jobs.local.snapshot import snapshot
from jobs.planning.cost import estimate
from jobs.planning.plan import Plan, data_root, make_plan
from jobs.planning.tasks import submit_task, wanted
from jobs.slurm.batches import Batch, draft
from jobs.slurm.queue import cancel, max_array_size
from jobs.slurm.sbatch import Submitter, refuse_early, submitting
from jobs.slurm.status import Overview, overview
from pipeline.errors import SpecError, SubmissionError
from pipeline.storage.files import shown
from pipeline.storage.provenance import code


def grid(request: Request) -> int:
    """Queue everything that is neither whole nor in flight, up to the leaderboard."""
    return _submit(request, submission=False)


def submission(request: Request) -> int:
    """Queue everything up to the checked submission.csv."""
    return _submit(request, submission=True)


def _submit(request: Request, *, submission: bool) -> int:
    plan = make_plan(request.loaded)
    if submission and len(plan.tests) < len(plan.cells):
        raise SubmissionError(
            f"{shown(plan.loaded.path)}: there are no images to predict; add data.test or a test share to data.split"
        )
    place(plan, request.profile)
    with submitting(plan.experiment):
        plan = make_plan(request.loaded)  # once more: another submission may just have ended
        standing = look(request, plan)
        _say(request, plan, standing)
        batches = batches_of(request, plan, standing, submission=submission)
        if not batches and standing.of("flight"):
            print(f"all is queued already; evaluate waits as job {standing.closing[0]}")
            return 0
        if not batches:
            status, batches = _ranked(request, plan, standing, submission=submission)
            if not batches:
                return status
        refuse_early(request.profile, request.cluster, batches)
        _within_budget(request, plan, standing)
        status = here.fetch_weights(plan)
        if status:
            return status
        frozen = snapshot(plan.experiment.code)
        plan.experiment.slurm.mkdir(parents=True, exist_ok=True)
        submitter = Submitter(request.profile, request.cluster, plan.experiment, frozen, code()["digest"])
        ids = submitter.submit(batches)
        cancel(standing.closing)  # the new closing waits for their cells too
    for batch in batches:
        jobs = ids[batch.key]
        cells = sum(len(group) for group in batch.cells)
        what = f" ({here.count(cells, 'cell')} in {here.count(len(jobs), 'job')})" if cells else ""
        print(f"queued {batch.key}: {jobs[0].split('_')[0]}{what}")
    print(
        f"nothing runs here; `make status SPEC={shown(plan.loaded.path)} CLUSTER={request.cluster}` looks",
        flush=True,
    )
    return 0


def look(request: Request, plan: Plan) -> Overview:
    """How every cell stands, asking Slurm where files do not prove it."""
    mem_gb = {cell.run.name: wanted(cell, request.profile).train.mem_gb for cell in plan.missing}
    return overview(plan, mem_gb=mem_gb, code=code()["digest"])


def batches_of(request: Request, plan: Plan, standing: Overview, *, submission: bool) -> list[Batch]:
    """The jobs to submit; [] when nothing is missing that is not in flight."""
    # a submission asked for while a plain grid is in flight needs a closing that does more
    closing_is_enough = bool(standing.closing) and not (submission and not standing.submits)
    if not standing.of("submit") and (not standing.of("flight") or closing_is_enough):
        return []
    return _draft(request, plan, standing, submission=submission)


def _draft(request: Request, plan: Plan, standing: Overview, *, submission: bool) -> list[Batch]:
    return draft(
        plan,
        request.profile,
        [cell.planned for cell in standing.of("submit")],
        flying=sorted({str(cell.job).split("_")[0] for cell in standing.of("flight")}),
        wrangling=standing.wrangling,
        max_array=request.profile.max_array or max_array_size(),
        submission=submission,
    )


def place(plan: Plan, profile: Profile) -> None:
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


def _say(request: Request, plan: Plan, standing: Overview) -> None:
    if request.profile.retired:
        print(f"note: {request.profile.retired}")
    counts = {kind: len(standing.of(kind)) for kind in ("submit", "flight", "held")}
    print(
        f"{shown(plan.loaded.path)}: {here.count(len(plan.cells), 'cell')}, {counts['submit']} to submit, "
        f"{counts['flight']} in flight, {counts['held']} held back",
        flush=True,
    )
    shown_cells = [cell for cell in standing.cells if cell.kind != "done"]
    for cell in shown_cells[:50]:
        job = f" (job {cell.job})" if cell.job and cell.kind != "submit" else ""
        print(f"  {cell.planned.run.name}: {cell.why}{job}")
    if len(shown_cells) > 50:
        print(f"  ... and {len(shown_cells) - 50} more")


def _within_budget(request: Request, plan: Plan, standing: Overview) -> None:
    budget = request.loaded.spec.run.budget_units
    if budget is None:
        return
    cost = estimate(plan, request.profile, [cell.planned for cell in standing.of("submit")])
    if cost.units is not None and cost.units > budget:
        raise SpecError(
            f"{shown(plan.loaded.path)}: the cells to submit would cost about {cost.units:.1f} {cost.unit}, "
            f"run.budget_units allows {budget:g}; raise it, or submit fewer cells"
        )


def _ranked(request: Request, plan: Plan, standing: Overview, *, submission: bool) -> tuple[int, list[Batch]]:
    """With every cell done: the leaderboard, made here (it is light), and the job of a submission if asked."""
    reasons = {cell.planned.run.name: cell.why for cell in standing.of("held")}
    status = here.evaluate(request, reasons) or (here.FAILED if reasons else 0)
    if not submission:
        return status, []
    from pipeline.evaluation.submission import is_predicted

    chosen = here.selected(plan, request.run)
    for run in chosen:
        if run.name not in plan.tests:
            raise SubmissionError(f"{run.name}: is no cell of {shown(plan.loaded.path)}; pick one that is")
    tests = [(run, plan.tests[run.name]) for run in chosen]
    if all(test.reason is None and is_predicted(run, test.packed, test.split) for run, test in tests):
        return here.submission_file(request, plan, chosen) or status, []
    batches = _draft(request, plan, standing, submission=True)
    (closing,) = batches[-1].tasks
    submit = submit_task(plan, tuple(run.name for run in chosen))
    last = replace(batches[-1], tasks=(replace(closing, submit=submit),))
    return status, [*batches[:-1], last]
