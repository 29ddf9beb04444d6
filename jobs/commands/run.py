"""The verbs on this machine: each plans, runs what is missing as processes, and says what it did."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs import ledger
from jobs.commands.data_lines import data_lines
from jobs.commands.request import Request
from jobs.commands.stage import FAILED, run_stage
from jobs.local.processes import Job, Outcome, run_jobs, started_early
from jobs.local.progress import Progress, shown
from jobs.local.slots import Slots
from jobs.local.snapshot import snapshot
from jobs.local.train_groups import group_process, plan_processes
from jobs.planning.earlier import forgotten, longer
from jobs.planning.overlaps import check_test_sets, with_own_test
from jobs.planning.own_code import freeze_own
from jobs.planning.plan import Plan, PlannedCell, PlannedData, experiment_dir, make_plan
from jobs.planning.tasks import (
    evaluate_task,
    predict_task,
    submission_task,
    train_task,
    weights_task,
    wrangle_task,
)
from pipeline.errors import SubmissionError, TrainingError
from pipeline.spec.reading import read_spec
from pipeline.storage.files import display_path
from pipeline.storage.ownership import owned
from pipeline.storage.run_dir import RunDir


def wrangle(request: Request) -> int:
    """Pack the images and labels this spec needs."""
    with shown():
        plan = make_plan(request.loaded)
    tests = {str(test.split or test.packed): test for test in plan.tests.values()}
    check_test_sets(plan)
    tell([*plan.gone, *plan.changed])
    status = _wrangle(plan, [*plan.datasets, *tests.values()])
    if not status:
        tell(check_test_sets(plan))
    return status


def grid(request: Request) -> int:
    """Run every missing cell, then rank all of them."""
    return _grid(request)[0]


def _grid(request: Request) -> tuple[int, bool]:
    """(exit status, whether it came to the leaderboard); a SubmissionError where another process runs this grid."""
    experiment = experiment_dir(request.loaded)
    with contextlib.ExitStack() as alone:
        try:
            alone.enter_context(owned(experiment.path, "this grid"))
        except TrainingError as error:
            raise SubmissionError(f"{error}; `WATCH=1 {request.command('status')}` shows it") from error
        return _run_grid(request)


def _run_grid(request: Request) -> tuple[int, bool]:
    with shown():  # the first time files are read
        plan = make_plan(request.loaded)
    missing = plan.missing
    spec = display_path(request.loaded.path)
    print(f"{spec}: {plural(len(plan.cells), 'cell')}, {len(missing)} to run", flush=True)
    for cell in missing:
        print(f"  {cell.run.name}: {cell.reason}", flush=True)
    for data in plan.datasets:
        if missing and data.reason is None:
            print(data_lines(data), flush=True)
    held = [cell for cell in plan.cells if cell.held is not None]
    for cell in held:
        print(f"  {cell.run.name}: held back: {cell.held}", flush=True)
    failed = FAILED if held else 0
    tell([*check_test_sets(plan), *plan.gone, *plan.changed, *longer(plan), *forgotten(plan)])
    if missing:
        outcome = _train(plan, missing)
        if outcome is None:
            return FAILED, False
        if outcome.stopped:
            print(f"paused; `{request.command()}` goes on from here", flush=True)
            return FAILED, False
        failed = FAILED if outcome.failed or held else 0
    else:
        plan.remember_data()
    status = rank(request)
    return status or failed, status == 0


def evaluate(request: Request) -> int:
    """Decide, measure and rank the finished cells."""
    tell(make_plan(request.loaded).gone)
    return rank(request)


def rank(request: Request, reasons: Mapping[str, str] | None = None) -> int:
    """The same, without a word on the data. `reasons`: why cells are not complete that cannot say it themselves."""
    from pipeline.evaluation.selection import format_leaderboard

    plan = make_plan(request.loaded)
    experiment = plan.experiment
    if not plan.evaluation.is_done:
        data = plan.datasets[0]
        if data.reason is not None:
            raise SubmissionError(
                f"{data.packed}: the packed data is {data.reason}; run `{request.command('wrangle')}` first"
            )
        status = run_stage(plan, "evaluate", evaluate_task(plan, reasons))
        if status:
            return status
    print(format_leaderboard(experiment, request.loaded.spec.evaluate.select_by), flush=True)
    print(f"report: {display_path(experiment.report)}")
    print(f"curves: tensorboard --logdir {display_path(experiment.path.parent)}", flush=True)
    return 0


def select(request: Request) -> int:
    """Pick the cell the submission is made of (--run CELL); without it, the best on validation again."""
    from pipeline.evaluation.selection import select_cell
    from pipeline.report import write_report

    experiment = experiment_dir(request.loaded)
    selected = select_cell(experiment, experiment.find(request.run) if request.run else None)
    write_report(experiment)
    print(f"selected: {selected}")
    return 0


def predict(request: Request) -> int:
    """Score the test images under the selected cell (or that of --run)."""
    plan = make_plan(request.loaded)
    return _predict(plan, _test_images(plan, selected(plan, request.run)))


def submission(request: Request) -> int:
    """Run what is missing and write the checked submission of the selected cell."""
    plan = make_plan(request.loaded)
    for cell in plan.cells:
        _test_data(plan, cell.run)  # better now than after the training
    status, ranked = _grid(request)
    if not ranked:
        return status
    plan = make_plan(request.loaded)
    tests = _test_images(plan, selected(plan, request.run))
    if failed := _predict(plan, tests):
        return failed
    print("submission: images are decided, and measured where their labels are known", flush=True)
    return submission_task(plan, tests)() or status


def report(request: Request) -> int:
    """Write report.html anew from what is there, also half-way; its figures and tables as files beside it."""
    from pipeline.report import write_report

    plan = make_plan(request.loaded)
    experiment = plan.experiment
    write_report(experiment, [cell.run.name for cell in plan.cells], files=True)
    print(
        f"report: {display_path(experiment.report)}\nfigures and tables: {display_path(experiment.figures)}/"
    )
    return 0


# ---------------------------------------------------------------- stages


def _wrangle(plan: Plan, datasets: Sequence[PlannedData], *, quiet: bool = False) -> int:
    for data in datasets:
        if data.reason is not None:
            # a set is named by its split too: one packed set can have several
            log = "-".join(["wrangle", data.packed.name, *([data.split.stem] if data.split else [])])
            status = run_stage(plan, f"wrangle {data.packed.name}", wrangle_task(plan, data), log)
            if status:
                return status
        elif quiet:
            continue
        print(data_lines(data), flush=True)
    return 0


def fetch_weights(plan: Plan) -> int:
    """Download the pretrained weights the missing cells name; exit status."""
    for model in plan.named_weights():
        status = run_stage(plan, f"weights {model.name} {model.weights}", weights_task(plan, model))
        if status:
            return status
    return 0


def _train(plan: Plan, missing: Sequence[PlannedCell]) -> Outcome | None:
    """Train the missing cells, once what they need is there; None where that failed."""
    jobs, slots = _processes(plan, missing)
    code = snapshot(plan.experiment.code)
    freeze_own((cell.code for cell in missing), plan.experiment.code)
    datasets = list({cell.data.split: cell.data for cell in missing}.values())
    tests = {test.packed: test for _, test in with_own_test(plan, datasets)}
    datasets += tests.values()
    waits = any(plan.named_weights()) or any(data.reason for data in datasets)
    with started_early(jobs if waits else [], slots, code) as early:
        packs = any(data.reason for data in datasets)
        if _wrangle(plan, datasets, quiet=True) or fetch_weights(plan):
            return None
        if packs:  # now by their pixels
            tell(check_test_sets(plan))
        where = f"{len(slots.gpus)} GPUs" if slots.gpus else f"{plural(slots.threads, 'thread')} each"
        where += f", {slots.ranks} processes a cell" if slots.ranks > 1 else ""
        shared = f" in {plural(len(jobs), 'process', 'es')}" if len(jobs) < len(missing) else ""
        at_once = min(slots.count, len(jobs))
        print(f"train: {plural(len(missing), 'cell')}{shared}, {at_once} at once, {where}", flush=True)
        for planned in missing:
            facts: dict[str, Any] = {} if slots.ranks == 1 else {"gpus": slots.ranks}
            facts |= {"cell": planned.run.name, "cluster": "local", "packed": planned.data.packed.name}
            ledger.append(plan.experiment.ledger, "queued", **facts)
        progress = Progress("cells", len(missing), plan.loaded.spec.train.monitor)
        outcome = run_jobs(jobs, slots, progress, code=code, early=early)
    plan.remember_data()
    for planned in missing:
        run, status = planned.run, outcome.status.get(planned.run.name)
        error = run.read_manifest().get("error") if status else None
        ledger.append(plan.experiment.ledger, "ended", cell=run.name, status=status, error=error)
    return outcome


def _processes(plan: Plan, missing: Sequence[PlannedCell]) -> tuple[list[Job], Slots]:
    """The processes that train the missing cells."""
    spec = plan.loaded.spec
    tasks = [train_task(plan, planned) for planned in plan.cells]
    features = any(planned.cell.spec.train.cached_views for planned in plan.cells)
    groups, slots = plan_processes(tasks, spec.run, spec.grid.share_process, features=features)
    wanted = {planned.run for planned in missing}
    jobs = [
        [Job(task.run.name, task, task.run.log, task.run.metrics) for task in group if task.run in wanted]
        for group in groups
    ]
    return [group_process(cells) for cells in jobs if cells], slots


def selected(plan: Plan, run: str | None) -> list[RunDir]:
    """The cell of --run, or the cells whose mean scores make the submission."""
    from pipeline.evaluation.selection import selected_cells

    return [plan.experiment.find(run)] if run else selected_cells(plan.experiment)


def _predict(plan: Plan, tests: Mapping[RunDir, PlannedData]) -> int:
    from pipeline.evaluation.submission import is_predicted

    status = _wrangle(plan, list({test.packed: test for test in tests.values()}.values()), quiet=True)
    missing = {run: test for run, test in tests.items() if not is_predicted(run, test.packed, test.split)}
    if status or not missing:
        return status
    names = ", ".join(run.name for run in missing)
    return run_stage(
        plan, f"predict {names}", predict_task(plan, missing), ranks=plan.loaded.spec.run.gpus_per_cell
    )


def _test_images(plan: Plan, runs: Sequence[RunDir]) -> dict[RunDir, PlannedData]:
    return {run: _test_data(plan, run) for run in runs}


def _test_data(plan: Plan, run: RunDir) -> PlannedData:
    """The images a cell predicts; a cell that is not of this grid says itself, in its spec."""
    cells = [cell.cell.spec for cell in plan.cells if cell.run == run]
    test = plan.test_of((cells[0] if cells else read_spec(run.spec, root=plan.root).spec).data)
    if test is None:
        spec = display_path(plan.loaded.path)
        raise SubmissionError(
            f"{spec}: there are no images to predict; write `test: {{source: FOLDER, labels: none}}` under data, with "
            "the folder of your new pictures, or keep some of the others for it by data.split.test: 0.1"
        )
    return test


def tell(notes: Iterable[str]) -> None:
    """Print what a person should know beside what was asked for."""
    for note in notes:
        print(f"note: {note}", flush=True)


def plural(number: int, what: str, plural: str = "s") -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {what}" + ("" if number == 1 else plural)
