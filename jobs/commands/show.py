"""Monitoring: status, plan (the dry run of grid), logs, doctor. Nothing is changed. Torch-free."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.clusters.billing import cost_per_hour
from jobs.commands import run, submit
from jobs.commands.data_lines import all_data, data_lines
from jobs.commands.request import Request
from jobs.local.progress import clock, last_epoch, seconds_left
from jobs.local.slots import Slots
from jobs.planning.cost import better_apart, cell_hours
from jobs.planning.earlier import forgotten, longer
from jobs.planning.overlaps import check_test_sets
from jobs.planning.plan import Plan, PlannedCell, find_cell, make_plan
from jobs.planning.status import CellStatus, local_status
from jobs.planning.tasks import resources_for
from jobs.slurm.costs import actual_costs, by_cell, by_unit, estimates, in_words
from jobs.slurm.endings import job_log
from jobs.slurm.forecast import forecast
from jobs.slurm.records import Submitted
from jobs.slurm.refusals import refuse_early
from jobs.slurm.status import last_jobs
from pipeline.data.layout import read_dataset
from pipeline.errors import LaunchError, PipelineError, SpecError
from pipeline.spec import LOWER_IS_BETTER, Spec, in_training
from pipeline.spec.licences import licence_notes
from pipeline.spec.model_choice import size_note
from pipeline.storage.files import display_path
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.provenance import code
from pipeline.storage.run_dir import RunDir

_WATCH_S = {"local": 2.0, "slurm": 30.0}  # seconds between two looks


def status(request: Request) -> int:
    """How every cell stands: state, epoch, best, elapsed, what is left, job, reason. WATCH=1 repeats it."""
    watch = bool(os.environ.get("WATCH"))
    while True:
        plan = make_plan(request.loaded, every_file=False)
        clear = "\x1b[H\x1b[2J" if watch and sys.stdout.isatty() else ""
        print(clear + table(request, plan), flush=True)
        if not watch or not plan.missing:
            return 0
        try:
            time.sleep(_WATCH_S[request.profile.scheduler])
        except KeyboardInterrupt:
            return 0


def table(request: Request, plan: Plan) -> str:
    """The status of all cells as text."""
    slurm = request.profile.scheduler == "slurm"
    grid_status = submit.grid_status_of(request, plan) if slurm else local_status(plan)
    costs, notes = _costs(request, plan) if slurm else ({}, [])
    by = plan.loaded.spec.train.monitor
    lower = " (lower is better)" if by in LOWER_IS_BETTER else ""
    best = f"best {in_training(by)}{lower}"
    cost = ["cost"] if costs else []
    rows = [["cell", "state", "epoch", best, "in epoch", "last", "elapsed", "left", *cost, "job", "reason"]]
    rows += [_row(cell, by, costs) for cell in grid_status.cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    counts = Counter(row[1] for row in rows[1:])
    stages = [f"wrangle: job {job}" for job in sorted(set(grid_status.wrangle_jobs.values()))]
    stages += [
        f"evaluate: job {job} {state.state}" + (f" ({state.reason})" if state.reason else "")
        for job, state in grid_status.final_jobs.items()
    ]
    if grid_status.stuck:
        stages.append(
            f"Slurm could not start job {', '.join(grid_status.stuck)} again: `{request.command('grid')}` releases it"
        )
    if grid_status.broken_off:
        stages.append(f"a launch broke off: `{request.command('grid')}` looks for what it queued")
    leaderboard = "up to date" if plan.evaluation.is_done else "not up to date"
    summary = ", ".join(f"{number} {state}" for state, number in counts.items())
    said = [f"note: {note}" for note in (*grid_status.notes, *notes, *plan.assumed, *forgotten(plan))]
    return "\n".join([*lines, "; ".join([summary, *stages, f"leaderboard {leaderboard}"]), *said])


def _costs(request: Request, plan: Plan) -> tuple[dict[str, str], list[str]]:
    """What each cell has cost, beside its estimate, and lines about all of them; ({}, []) without prices."""
    if not plan.experiment.ledger.exists() or cost_per_hour(request.profile.train, request.profile) is None:
        return {}, []
    estimated = estimates(read_jsonl(plan.experiment.ledger))
    try:
        costs = actual_costs(plan.experiment, request.profile)
    except LaunchError as error:
        return {}, [f"what the jobs have cost is not known ({error})"]
    texts = {
        name: f"{cost.units:.2f} {cost.unit}"
        + (f" (estimate {estimated[name]:.2f})" if name in estimated else "")
        for name, cost in by_cell(costs.values()).items()
        if cost.units is not None
    }
    total = f"cost so far: {in_words(by_unit(costs.values()))} for all jobs of this experiment"
    both = [name for name in texts if name in estimated]
    if both:
        total += f"; {sum(estimated[name] for name in both):.2f} were estimated for {run.plural(len(both), 'cell')}"
    return texts, [total]


def _row(cell: CellStatus, by: str, costs: Mapping[str, str]) -> list[str]:
    run, epochs = cell.planned.run, cell.planned.cell.spec.train.epochs
    newest = last_epoch(run.metrics)
    epoch = newest.get("epoch", 0)
    words = {"done": "done", "held": "held", "pending": "missing"}
    state = words.get(cell.kind) or (cell.state.state if cell.state else "queued")
    elapsed = cell.state.elapsed_s if cell.state else 0
    left = ""
    if state == "running" and 0 < epoch < epochs:
        left = "~" + clock(seconds_left(newest, epochs))
    node = f" on {cell.state.nodes}" if cell.state and cell.state.nodes else ""
    return [
        run.name,
        state,
        f"{epoch}/{epochs}",
        _number(newest.get("best_value")),
        str(newest.get("best_epoch", "")),
        _number(newest.get(f"validation/{by}")),
        clock(elapsed) if elapsed else "",
        left,
        *([costs.get(run.name, "")] if costs else []),
        (cell.job or "") + node,
        _first_line(cell.state.reason if cell.state and cell.kind == "active" else cell.why),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def plan(request: Request) -> int:
    """The dry run of grid: cells and why, what is there already, the scripts, hours and cost."""
    planned = make_plan(request.loaded, every_file=False)
    profile = request.profile
    print(f"{display_path(planned.loaded.path)}: {run.plural(len(planned.cells), 'cell')}")
    for data in all_data(planned):
        print(data_lines(data))
    earlier = [*longer(planned), *forgotten(planned)]
    run.tell([*check_test_sets(planned), *planned.gone, *planned.assumed, *planned.changed, *earlier])
    run.tell(filter(None, [planned.loaded.spec.evaluate.mismatch, *_size_notes(planned)]))
    models = (cell.cell.spec.train.model for cell in planned.cells)
    run.tell(licence_notes((model.name, model.weights) for model in models))
    if profile.scheduler == "local":
        for cell in planned.cells:
            print(f"  {cell.run.name}: {cell.reason or 'complete'}")
        settings = planned.loaded.spec.run
        if (ranks := settings.gpus_per_cell) > 1:
            few = settings.parallel, settings.threads, settings.device
            slots = Slots.for_cells(len(planned.cells), *few, ranks=ranks)
            run.tell(filter(None, [better_apart(settings, len(planned.missing), slots.count)]))
        _print_hours(request, planned, planned.missing)
    else:
        _print_batches(request, planned)
    return 0


def _size_notes(planned: Plan) -> list[str | None]:
    """Of missing cells: that their weights learnt from pictures of another size, or from sharper ones."""
    specs = [cell.cell.spec for cell in planned.missing]
    trains = [spec.train for spec in specs]
    notes = [size_note(train.model.name, train.model.weights, train.image_px) for train in trains]
    if specs and all(map(_learnt_from_sharper, specs)):
        notes.append(
            "data.interpolation: bilinear: all weights here learnt from bicubic pictures; bicubic packs such ones"
        )
    return list(dict.fromkeys(notes))


def _learnt_from_sharper(spec: Spec) -> bool:
    """Whether pictures are packed bilinearly for weights that learnt from bicubic ones."""
    model = spec.train.model
    is_sharper = model.weights != "none" and model.preprocessing.interpolation == "bicubic"
    return is_sharper and spec.data.interpolation == "bilinear"


def _print_batches(request: Request, planned: Plan) -> None:
    """What would be sent, to the letter, and what it would cost."""
    profile, experiment = request.profile, planned.experiment
    account = (
        f"{profile.account} ({profile.account_source})" if profile.account else "none: the site's default"
    )
    print(f"account: {account}")
    run.tell(submit.environment_notes())
    grid_status = submit.grid_status_of(request, planned)
    run.tell(grid_status.notes)
    for cell_status in grid_status.cells:
        print(f"  {cell_status.planned.run.name}: {cell_status.why or 'complete'}")
    batches = submit.batches_of(request, planned, grid_status, submission=request.for_submission)
    if not batches and request.for_submission and not grid_status.of("active"):
        batches = submit.build_all(request, planned, grid_status, submission=True)
    refuse_early(profile, request.cluster, batches, experiment.slurm)
    pending = len(grid_status.of("pending"))
    at_once = min(pending, profile.max_parallel) or 1
    run.tell(
        [*submit.idle_gpus(batches), *filter(None, [better_apart(request.loaded.spec.run, pending, at_once)])]
    )
    frozen = experiment.code / f"code-{code()['digest'][:12]}.zip"
    options = submit.options_of(request, planned, frozen)
    for batch in batches:
        print(f"\n# ---- {batch.key}: {run.plural(len(batch.tasks), 'job')}\n{options.script(batch)}")
    _print_hours(request, planned, [cell.planned for cell in grid_status.of("pending")])
    if batches:
        cost = forecast(planned, profile, batches, request.cluster)
        print(cost.text())
        if (budget := request.loaded.spec.run.budget_units) is not None:
            try:
                submit.within_budget(request, planned, grid_status, batches)
                print(f"budget: {budget:g}, which is kept")
            except PipelineError as error:
                print(f"budget: {budget:g}: `{request.command('grid')}` will refuse: {error}")


def _print_hours(request: Request, planned: Plan, missing: Sequence[PlannedCell]) -> None:
    known = cell_hours(planned, request.profile, missing, request.cluster)
    hours = {
        cell.run.name: known[cell.run.name] / resources_for(cell, request.profile).concurrent_cells
        for cell in missing
        if cell.run.name in known
    }
    if hours:
        print(f"estimate: {sum(hours.values()):.2f} hours for {len(hours)} of {len(missing)} cells")
    elif missing:
        print(
            f"No estimate for {run.plural(len(missing), 'cell')}: "
            "no finished cell uses the same model, image size and device."
        )


def inspect(request: Request) -> int:
    """Say how the labels were read, and write twelve images with their labels as one picture."""
    from pipeline.data.contact_sheet import contact_sheet
    from pipeline.data.reading import read_data

    planned = make_plan(request.loaded)
    for number, data in enumerate(all_data(planned)):
        print(data_lines(data))
        test = data.split is None
        name = "inspect" + ("-test" if test else f"-{number + 1}" if number else "") + ".png"
        ends = data.data.range if isinstance(data.data.range, tuple) else None
        if data.data.range == "auto":
            ends = (read_dataset(data.packed) or {}).get("range")
            if ends is None:
                print("  pictures of more than 8 bits may look black here: their range is found by wrangle")
        contact_sheet(read_data(data.data, test=test), planned.experiment.path / name, ends)
        print(
            f"  twelve images with their labels: {display_path(planned.experiment.path / name)}", flush=True
        )
    return 0


def logs(request: Request) -> int:
    """The end of the right log: RUN's, else of every cell that failed; a job's own where its cell has none."""
    planned = make_plan(request.loaded, every_file=False)
    jobs = last_jobs(read_jsonl(planned.experiment.ledger))
    if request.run:
        paths = _logs_of(planned, find_cell(planned, request.run), jobs)
    else:
        paths = [
            path for cell in planned.missing for path in _logs_of(planned, cell.run, jobs) if path.exists()
        ]
        paths += sorted(planned.experiment.logs.glob("*.txt")) if not paths else []
    if not paths:
        raise SpecError(
            f"{display_path(planned.experiment.path)}: no log yet; `{request.command('status')}` says what is queued"
        )
    for path in paths[:10]:
        print(f"==> {display_path(path)} <==")
        if path.exists():
            print("\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]))
        else:
            print("(not started yet)")
    return 0


def _logs_of(planned: Plan, cell: RunDir, jobs: Mapping[str, Submitted]) -> list[Path]:
    """A cell's log; before or after it that of its job, where the job said more than it started."""
    job = jobs.get(cell.name)
    log = job_log(job.job, planned.experiment.slurm) if job else None
    if log is None or not log.exists():
        return [cell.log]
    if not cell.log.exists():
        return [log]
    later = log.stat().st_mtime > cell.log.stat().st_mtime and cell.read_manifest().get("state") != "done"
    return [cell.log, log] if later else [cell.log]


def doctor(request: Request) -> int:
    """Try what a grid will need: packages, data, weights, disk, and on a cluster what Slurm says; 1 if any fails."""
    from jobs.commands.doctor import checks  # which looks into the data

    results = list(checks(request))
    for check in results:
        print(f"{'ok  ' if check.ok else 'FAIL'} {check.what}: {check.result}")
    return 0 if all(check.ok for check in results) else 1
