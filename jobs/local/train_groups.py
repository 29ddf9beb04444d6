"""Which cells share a process: those of one stream of batches, where that pays. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from jobs.local.processes import Job
from jobs.local.slots import Slots
from jobs.stages import TrainGroupTask, TrainTask
from pipeline.errors import LaunchError
from pipeline.spec import RunSpec
from pipeline.storage.host import cores

CELLS_PER_PROCESS = 8  # where the choice is ours: what one crash stops, and what must fit into memory
_CORES_PER_PROCESS = 4  # one network's step keeps no more of them busy
_MAX_PROCESSES = 4  # as many even of one core each: a thread alone never waits for another


def group_tasks(tasks: Sequence[TrainTask], size: int) -> list[tuple[TrainTask, ...]]:
    """The cells of each process, in their order: at most `size` of one stream; those without one alone."""
    groups: list[list[TrainTask]] = []
    newest: dict[str, list[TrainTask]] = {}
    for task in tasks:
        group = newest.get(task.stream) if task.stream else None
        if group is None or len(group) == size:
            group = newest[task.stream] = []
            groups.append(group)
        group.append(task)
    return [tuple(group) for group in groups]


def plan_processes(
    tasks: Sequence[TrainTask], run: RunSpec, choice: Literal["auto"] | bool, *, features: bool = False
) -> tuple[list[tuple[TrainTask, ...]], Slots]:
    """The processes of a whole grid here, and how many of them run at once.

    It pays where cells would otherwise wait for each other or share few cores: a process starts, reads
    and augments once for all its cells. Of the whole grid and not of what is missing: a cell trained
    later gets the same threads, and so the same bits. `features`: it is made of kept ones, whose single
    computation wants the threads that as many processes would split.
    """
    ranks = run.gpus_per_cell
    if run.nodes_per_cell > 1:
        raise LaunchError(
            f"run.nodes_per_cell: {run.nodes_per_cell}: this machine is one node; set it to 1, or name a cluster by "
            "CLUSTER="
        )
    alone = Slots.for_cells(len(tasks), run.parallel, run.threads, run.device, ranks=ranks)
    if ranks > 1:  # a cell has all of its GPUs for itself
        return [(task,) for task in tasks], alone
    few = 1 if features else min(_MAX_PROCESSES, cores())
    processes = max(few, cores() // _CORES_PER_PROCESS) if choice == "auto" else 1
    at_once = run.parallel or len(alone.gpus) or processes
    size = -(-len(tasks) // at_once)
    groups = group_tasks(tasks, min(size, CELLS_PER_PROCESS) if choice == "auto" else size)
    if len(groups) == len(tasks):
        return groups, alone
    count = min(at_once, len(groups))
    return groups, Slots.for_cells(len(groups), count, run.threads, run.device)


def group_process(cells: Sequence[Job]) -> Job:
    """One process for the jobs of some cells; what it says itself goes to the first one's log."""
    first, *others = cells
    if not others:
        return first
    tasks = tuple(cell.task for cell in cells if isinstance(cell.task, TrainTask))
    return replace(first, name=f"{first.name} +{len(others)}", task=TrainGroupTask(tasks), parts=tuple(cells))
