"""Monitoring: status, plan (the dry run of grid), logs, doctor. Nothing is changed. Torch-free."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

from jobs.commands import run, submit
from jobs.commands.data_lines import all_data, data_lines
from jobs.commands.request import Request
from jobs.local.progress import clock, last_epoch, seconds_left
from jobs.planning.cost import estimate
from jobs.planning.overlaps import check_test_sets
from jobs.planning.plan import Plan, make_plan
from jobs.planning.status import CellStatus, local_status
from jobs.slurm.sbatch import Submitter, refuse_early
from pipeline.data.layout import read_dataset
from pipeline.errors import SpecError
from pipeline.spec import LOWER_IS_BETTER, in_training
from pipeline.storage.files import display_path
from pipeline.storage.provenance import code

_WATCH_S = {"local": 2.0, "slurm": 30.0}  # seconds between two looks


def status(request: Request) -> int:
    """How every cell stands: state, epoch, best, elapsed, what is left, job, reason. WATCH=1 repeats it."""
    watch = bool(os.environ.get("WATCH"))
    while True:
        plan = make_plan(request.loaded)
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
    by = plan.loaded.spec.train.monitor
    lower = " (lower is better)" if by in LOWER_IS_BETTER else ""
    best = f"best {in_training(by)}{lower}"
    rows = [["cell", "state", "epoch", best, "in epoch", "last", "elapsed", "left", "job", "reason"]]
    rows += [_row(cell, by) for cell in grid_status.cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    counts = Counter(row[1] for row in rows[1:])
    stages = [f"wrangle: job {job}" for job in sorted(set(grid_status.wrangle_jobs.values()))]
    stages += [f"evaluate: job {job} {state.state}" for job, state in grid_status.final_jobs.items()]
    leaderboard = "up to date" if plan.evaluation.is_done else "not up to date"
    summary = ", ".join(f"{number} {state}" for state, number in counts.items())
    return "\n".join([*lines, "; ".join([summary, *stages, f"leaderboard {leaderboard}"])])


def _row(cell: CellStatus, by: str) -> list[str]:
    run, epochs = cell.planned.run, cell.planned.cell.spec.train.epochs
    newest = last_epoch(run.metrics)
    epoch = newest.get("epoch", 0)
    words = {"done": "done", "held": "held", "pending": "missing"}
    state = words.get(cell.kind) or (cell.state.state if cell.state else "queued")
    elapsed = cell.state.elapsed_s if cell.state else 0
    left = ""
    if state == "running" and 0 < epoch < epochs:
        left = "~" + clock(seconds_left(newest, epochs))
    return [
        run.name,
        state,
        f"{epoch}/{epochs}",
        _number(newest.get("best_value")),
        str(newest.get("best_epoch", "")),
        _number(newest.get(f"validation/{by}")),
        clock(elapsed) if elapsed else "",
        left,
        cell.job or "",
        _first_line(cell.state.reason if cell.state and cell.kind == "active" else cell.why),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def plan(request: Request) -> int:
    """The dry run of grid: cells and why, what is there already, the scripts, hours and cost."""
    planned = make_plan(request.loaded)
    profile = request.profile
    print(f"{display_path(planned.loaded.path)}: {run.plural(len(planned.cells), 'cell')}")
    for data in all_data(planned):
        print(data_lines(data))
    run.tell([*check_test_sets(planned), *planned.gone, *planned.changed, *planned.longer])
    run.tell(filter(None, [planned.loaded.spec.evaluate.mismatch]))
    missing = planned.missing
    if profile.scheduler == "local":
        for cell in planned.cells:
            print(f"  {cell.run.name}: {cell.reason or 'complete'}")
    else:
        grid_status = submit.grid_status_of(request, planned)
        for cell_status in grid_status.cells:
            print(f"  {cell_status.planned.run.name}: {cell_status.why or 'complete'}")
        batches = submit.batches_of(request, planned, grid_status, submission=False)
        refuse_early(profile, request.cluster, batches)
        frozen = planned.experiment.code / f"code-{code()['digest'][:12]}.zip"
        submitter = Submitter(profile, request.cluster, planned.experiment, frozen, code()["digest"])
        for batch in batches:
            print(f"\n# ---- {batch.key}: {run.plural(len(batch.tasks), 'job')}\n{submitter.script(batch)}")
        missing = [cell.planned for cell in grid_status.of("pending")]
    cost = estimate(planned, profile, missing)
    if missing and cost.known:
        units = f", about {cost.units:.1f} {cost.unit}" if cost.units is not None else ""
        print(f"estimate: {cost.hours:.2f} hours for {cost.known} of {len(missing)} cells{units}")
        budget = request.loaded.spec.run.budget_units
        if budget is not None and cost.units is not None:
            print(f"budget: {budget:g} {cost.unit}" + (": exceeded" if cost.units > budget else ""))
    elif missing:
        print(
            f"No estimate for {run.plural(len(missing), 'cell')}: "
            "no finished cell uses the same model, image size and device."
        )
    return 0


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
    """The end of the right log: RUN's, or without RUN of every cell that failed."""
    planned = make_plan(request.loaded)
    if request.run:
        paths = [planned.experiment.find(request.run).log]
    else:
        paths = [cell.run.log for cell in planned.missing if cell.run.log.exists()]
        paths += sorted(planned.experiment.logs.glob("*.txt")) if not paths else []
    if not paths:
        raise SpecError(
            f"{display_path(planned.experiment.path)}: no log yet; `make status` says what is queued"
        )
    for path in paths[:10]:
        print(f"==> {display_path(path)} <==")
        if path.exists():
            print("\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]))
        else:
            print("(not started yet)")
    return 0


def doctor(request: Request) -> int:
    """Try what a grid will need: packages, data, weights, disk, and on a cluster what Slurm says; 1 if any fails."""
    from jobs.commands.doctor import checks  # which looks into the data

    results = list(checks(request))
    for check in results:
        print(f"{'ok  ' if check.ok else 'FAIL'} {check.what}: {check.result}")
    return 0 if all(check.ok for check in results) else 1
