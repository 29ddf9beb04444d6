"""From cells to the jobs that will run them: arrays, their resources and what waits for what. Pure; torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.allocation import CellJob, Closing, Steps
from jobs.cluster import Profile, Resources
from jobs.graph import Plan, PlannedCell, PlannedData, data_root
from jobs.stages import Evaluate, Submit, Train, Wrangle
from jobs.together import CELLS_A_PROCESS, stream_of
from pipeline.errors import SpecError
from pipeline.grid import matches

_PACKING = {"cells_per_job", "side_by_side"}


@dataclass(frozen=True)
class Batch:
    """One sbatch: an array, or a single job where it holds one task."""

    key: str
    tasks: tuple[Any, ...]
    resources: Resources
    cells: tuple[tuple[PlannedCell, ...], ...] = ()  # of each task
    packs: tuple[str, ...] = ()  # the packed sets it makes
    after: tuple[str, ...] = ()  # keys of batches, or ids of jobs that are queued already
    condition: str = "afterok"
    throttle: int = 1
    requeue: bool = False


def wanted(cell: PlannedCell, profile: Profile) -> Profile:
    """The profile as this cell wants it: changed by the spec's `run.resources` that match the cell."""
    for rule in cell.cell.spec.run.resources:
        if matches(cell.cell.spec, rule.when):
            train = rule.model_dump(exclude={"when", *_PACKING}, exclude_none=True)
            packing = rule.model_dump(include=_PACKING, exclude_none=True)
            changed = {"train": profile.train.model_copy(update=train), **packing}
            profile = profile.model_copy(update=changed)
    return profile


def draft(
    plan: Plan,
    profile: Profile,
    cells: Sequence[PlannedCell],
    *,
    flying: Sequence[str],
    wrangling: dict[str, str],
    max_array: int,
    submission: bool,
) -> list[Batch]:
    """The batches that complete a plan: wrangle, train arrays, and the closing that evaluates.

    `cells` are to be trained; `flying` are jobs in flight whose cells belong to the leaderboard too.
    """
    batches = []
    needed = {str(c.data.split): c.data for c in cells if c.data.reason is not None}
    if submission:
        needed |= {str(t.split or t.packed): t for t in plan.tests.values() if t.reason is not None}
    new = [data for data in needed.values() if str(data.packed) not in wrangling]
    waits = tuple(sorted({wrangling[str(d.packed)] for d in needed.values() if str(d.packed) in wrangling}))
    if new:
        steps = Steps(tuple(wrangle_task(plan, data) for data in new))
        packs = tuple(str(data.packed) for data in new)
        batches.append(Batch("wrangle", (steps,), profile.cpu, packs=packs, requeue=profile.requeue))
        waits = (*waits, "wrangle")
    arrays = list(_arrays(plan, profile, cells, max_array, len(batches) + len(flying) + 1))
    last = []
    for number, (tasks, groups, resources) in enumerate(arrays, 1):
        batch = Batch(
            f"train-{number}",
            tasks,
            resources,
            cells=groups,
            after=waits,
            throttle=profile.max_parallel,
            requeue=profile.requeue,
        )
        batches.append(batch)
        for run in range(1, 1 if profile.requeue else 1 + profile.continuations):
            name, after = f"train-{number}-more-{run}", (batches[-1].key,)
            batches.append(replace(batch, key=name, after=after, condition="afterany"))
        last.append(batches[-1].key)
    batches.append(_closing(plan, profile, (*last, *sorted(flying)), batches, submission=submission))
    return batches


def _arrays(
    plan: Plan, profile: Profile, cells: Sequence[PlannedCell], max_array: int, other_jobs: int
) -> Any:
    """(tasks, cells of each task, resources) of every array."""
    groups: dict[str, list[tuple[PlannedCell, Profile]]] = {}
    for cell in cells:
        want = wanted(cell, profile)
        groups.setdefault(repr(want), []).append((cell, want))
    room = (profile.max_submit or math.inf) - other_jobs
    per_job = CELLS_A_PROCESS if plan.loaded.spec.grid.together is True else 1
    while sum(math.ceil(len(g) / max(per_job, g[0][1].cells_per_job)) for g in groups.values()) > room:
        per_job += 1  # more cells a job, one after another, so that all fit
        if per_job > len(cells):
            raise SpecError(
                f"{len(cells)} cells do not fit: {other_jobs} jobs are queued and the cluster allows "
                f"{profile.max_submit} (cluster.max_submit); wait for some to end"
            )
    for group in groups.values():
        want = group[0][1]
        size = max(per_job, want.cells_per_job)
        if size > 1:  # those that can share a process into one job
            streams = [train_task(plan, cell).stream for cell, _ in group]
            group = [group[i] for i in sorted(range(len(group)), key=lambda i: streams.index(streams[i]))]
        members = [tuple(cell for cell, _ in group[i : i + size]) for i in range(0, len(group), size)]
        for start in range(0, len(members), max_array):
            part = tuple(members[start : start + max_array])
            yield tuple(_cell_job(plan, want, some) for some in part), part, want.train


def _cell_job(plan: Plan, want: Profile, cells: Sequence[PlannedCell]) -> CellJob:
    return CellJob(
        tasks=tuple(train_task(plan, cell) for cell in cells),
        side_by_side=min(want.side_by_side, len(cells)),
        cores=want.train.cpus,
        device=plan.loaded.spec.run.device,
        scratch=want.scratch,
        requeue=want.requeue,
        grace_s=max(want.signal_s - 30.0, want.signal_s / 2),
    )


def train_task(plan: Plan, cell: PlannedCell) -> Train:
    """The task that trains a cell."""
    return Train(
        run=str(cell.run.path),
        spec=cell.cell.spec.model_dump_json(),
        identity=cell.identity,
        packed=str(cell.data.packed),
        split=str(cell.data.split),
        weights_folder=str(data_root(plan.root) / "weights"),
        stream=stream_of(cell.cell.spec.train, cell.data.digest) if plan.loaded.spec.grid.together else "",
    )


def evaluate_task(plan: Plan) -> Evaluate:
    """The task that makes the leaderboard."""
    data, evaluation = plan.datasets[0], plan.evaluation
    return Evaluate(
        experiment=str(plan.experiment.path),
        cells=evaluation.cells,
        evaluate=evaluation.evaluate.model_dump_json(),
        submission=evaluation.submission.model_dump_json(),
        best_by=plan.loaded.spec.train.best_by,
        packed=str(data.packed),
        split=str(data.split),
        data_digests=evaluation.data_digests,
    )


def submit_task(plan: Plan, cells: tuple[str, ...] | None) -> Submit:
    """The task that predicts and writes the submission of `cells`, or of those selected by then."""
    spec = plan.loaded.spec
    tests = {name: (str(t.packed), str(t.split) if t.split else None) for name, t in plan.tests.items()}
    evaluate = spec.evaluate.model_dump_json()
    return Submit(str(plan.experiment.path), cells, tests, spec.run.device, evaluate)


def wrangle_task(plan: Plan, data: PlannedData) -> Wrangle:
    """The task that packs a data set."""
    root = str(data_root(plan.root))
    return Wrangle(data=data.data.model_dump_json(), data_root=root, test=data.split is None)


def _closing(
    plan: Plan, profile: Profile, after: tuple[str, ...], batches: Sequence[Batch], *, submission: bool
) -> Batch:
    submit = submit_task(plan, None) if submission else None
    task = Closing(evaluate_task(plan), (), submit)
    # a submission scores the test images, which wants what training wants
    resources = profile.train if submit else profile.cpu
    condition = "afterany"
    if not after:  # no cell to wait for: only the data, if that
        after, condition = tuple(batch.key for batch in batches), "afterok"
    return Batch("closing", (task,), resources, after=after, condition=condition, requeue=profile.requeue)
