"""From cells to the jobs that will run them: arrays, their resources and what waits for what. Pure; torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jobs.clusters.profile import Profile, Resources
from jobs.local.train_groups import CELLS_PER_PROCESS
from jobs.planning.overlaps import with_own_test
from jobs.planning.plan import Plan, PlannedCell
from jobs.planning.status import GridStatus
from jobs.planning.tasks import (
    evaluate_task,
    final_resources,
    overlap_task,
    resources_for,
    stage_resources,
    submission_task,
    train_task,
    wrangle_task,
)
from jobs.slurm.job import CellJob, FinalJob, StageJob
from pipeline.errors import SpecError


@dataclass(frozen=True)
class Batch:
    """One sbatch: an array, or a single job where it holds one task."""

    key: str
    tasks: tuple[Any, ...]
    resources: Resources
    cells: tuple[tuple[PlannedCell, ...], ...] = ()  # of each task
    packs: tuple[str, ...] = ()  # the packed sets it makes
    after: tuple[str, ...] = ()  # keys of batches, or ids of jobs that are queued already
    condition: Literal["afterok", "afterany", "each"] = (
        "afterok"  # "each": the same task of that array has ended
    )
    throttle: int = 1
    signal_s: int = 120  # between the warning and the time limit
    requeue: bool = False


def build_batches(
    plan: Plan, profile: Profile, grid_status: GridStatus, *, max_array: int, submission: bool
) -> list[Batch]:
    """The batches that complete a plan: wrangle, train arrays, and the final job that evaluates.

    Pending cells are to be trained; the final job waits for active ones too, which the leaderboard includes.
    """
    cells = [cell.planned for cell in grid_status.of("pending")]
    active_jobs = sorted({str(cell.job).split("_")[0] for cell in grid_status.of("active")})
    others = max(grid_status.queued, len(active_jobs))
    wrangle_jobs = grid_status.wrangle_jobs
    batches = []
    # pictures of the test set are looked for in training before it begins
    compared = list(with_own_test(plan, {str(c.data.split): c.data for c in cells}.values()))
    needed = {str(c.data.split): c.data for c in cells if c.data.reason is not None}
    tests = [*(test for _, test in compared), *(plan.tests.values() if submission else ())]
    needed |= {str(t.split or t.packed): t for t in tests if t.reason is not None}
    new = [data for data in needed.values() if str(data.packed) not in wrangle_jobs]
    waits = tuple(
        sorted({wrangle_jobs[str(d.packed)] for d in needed.values() if str(d.packed) in wrangle_jobs})
    )
    if new:
        checks = [overlap_task(*pair) for pair in compared if any(data.reason for data in pair)]
        stages = StageJob((*(wrangle_task(plan, data) for data in new), *checks))
        packs = tuple(str(data.packed) for data in new)
        resources = stage_resources(plan, profile.cpu, "wrangle")
        wrangle = Batch("wrangle", (stages,), resources, packs=packs, requeue=profile.requeue)
        batches.append(replace(wrangle, after=waits) if checks else wrangle)
        waits = (*waits, "wrangle")
    arrays = list(_arrays(plan, profile, cells, max_array, len(batches) + others + 1))
    last = []
    for number, (tasks, groups, resources) in enumerate(arrays, 1):
        batch = Batch(
            f"train-{number}",
            tasks,
            resources,
            cells=groups,
            after=waits,
            throttle=profile.max_parallel,
            signal_s=warning_s(profile, resources),
            requeue=profile.requeue,
        )
        batches.append(batch)
        for run in range(1, 1 + _continuations(profile)):
            name, after = f"train-{number}-more-{run}", (batches[-1].key,)
            batches.append(replace(batch, key=name, after=after, condition="each"))
        last.append(batches[-1].key)
    batches.append(_final_job(plan, profile, (*last, *active_jobs), batches, submission=submission))
    return batches


def _arrays(
    plan: Plan, profile: Profile, cells: Sequence[PlannedCell], max_array: int, other_jobs: int
) -> Any:
    """(tasks, cells of each task, resources) of every array."""
    groups: dict[str, list[tuple[PlannedCell, Profile]]] = {}
    for cell in cells:
        changed = resources_for(cell, profile)
        groups.setdefault(repr(changed), []).append((cell, changed))
    free = (profile.max_submit or math.inf) - other_jobs
    runs = 1 + _continuations(profile)
    per_job = CELLS_PER_PROCESS if plan.loaded.spec.grid.share_process is True else 1
    while runs * sum(math.ceil(len(g) / max(per_job, g[0][1].cells_per_job)) for g in groups.values()) > free:
        per_job += 1  # more cells a job, one after another, so that all fit
        if per_job > len(cells):
            raise SpecError(
                f"{len(cells)} cells do not fit{_with_continuations(runs)}: {other_jobs} other jobs are queued or "
                f"needed, and the cluster allows {profile.max_submit} (cluster.max_submit); wait for some to end"
                + (", or lower cluster.continuations" if runs > 1 else "")
            )
    for group in groups.values():
        own = group[0][1]
        size = max(per_job, own.cells_per_job)
        if size > 1:  # those that can share a process into one job
            streams = [train_task(plan, cell).stream for cell, _ in group]
            group = [group[i] for i in sorted(range(len(group)), key=lambda i: streams.index(streams[i]))]
        members = [tuple(cell for cell, _ in group[i : i + size]) for i in range(0, len(group), size)]
        for start in range(0, len(members), max_array):
            part = tuple(members[start : start + max_array])
            yield tuple(_cell_job(plan, own, some) for some in part), part, own.train


def _continuations(profile: Profile) -> int:
    return 0 if profile.requeue else profile.continuations


def _with_continuations(runs: int) -> str:
    return f" with {runs - 1} continuation jobs each" if runs > 1 else ""


def warning_s(profile: Profile, resources: Resources) -> int:
    """Seconds between the warning and the time limit of a job: at most half of the limit."""
    return min(profile.signal_s, 30 * resources.time_min)


def _cell_job(plan: Plan, profile: Profile, cells: Sequence[PlannedCell]) -> CellJob:
    run = plan.loaded.spec.run
    if run.nodes_per_cell > 1 and profile.concurrent_cells > 1:
        raise SpecError(
            f"cluster.concurrent_cells: {profile.concurrent_cells}: cells over several nodes (run.nodes_per_cell: "
            f"{run.nodes_per_cell}) train one after another; set it to 1"
        )
    return CellJob(
        tasks=tuple(train_task(plan, cell) for cell in cells),
        concurrent_cells=min(profile.concurrent_cells, len(cells)),
        cores=profile.train.cpus,
        device=run.device,
        ranks=run.gpus_per_cell // run.nodes_per_cell,
        nodes=run.nodes_per_cell,
        scratch=profile.scratch,
        requeue=profile.requeue,
        grace_s=max((warning := warning_s(profile, profile.train)) - 30.0, warning / 2),
        limit_s=60 * profile.train.time_min,
        warning_s=warning,
        max_restarts=profile.max_timeouts,
    )


def _final_job(
    plan: Plan, profile: Profile, after: tuple[str, ...], batches: Sequence[Batch], *, submission: bool
) -> Batch:
    last = submission_task(plan, None) if submission else None
    run = plan.loaded.spec.run
    ranks = run.gpus_per_cell // run.nodes_per_cell
    task = FinalJob(evaluate_task(plan), last, profile, ranks)
    resources = final_resources(plan, profile, submission=submission)
    if not after:  # no cell to wait for: only the data, if that
        first = tuple(batch.key for batch in batches)
        return Batch("final", (task,), resources, after=first, condition="afterok", requeue=profile.requeue)
    return Batch("final", (task,), resources, after=after, condition="afterany", requeue=profile.requeue)
