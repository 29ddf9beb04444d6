"""The stages as small picklable values; what they need of the pipeline is imported when they run."""

from __future__ import annotations

import sys
from functools import cache
from typing import get_args

from pydantic import TypeAdapter

from jobs.stages.exit_status import (
    EXIT_DEVICE_FAILED,
    EXIT_FAILED,
    EXIT_RANK_LOST,
    EXIT_STOPPED,
)
from jobs.stages.tasks import (
    EvaluateTask,
    FetchWeightsTask,
    OverlapTask,
    PredictTask,
    SubmissionTask,
    WrangleTask,
)
from jobs.stages.train import TrainGroupTask, TrainTask
from pipeline.spec.model_names import CNNS
from pipeline.spec.own_code import is_own
from pipeline.spec.timm_catalogue import PREFIX
from pipeline.training.dynamo_stub import install_dynamo_stub

__all__ = [
    "EXIT_DEVICE_FAILED",
    "EXIT_FAILED",
    "EXIT_RANK_LOST",
    "EXIT_STOPPED",
    "EvaluateTask",
    "FetchWeightsTask",
    "OverlapTask",
    "PredictTask",
    "SubmissionTask",
    "Task",
    "TrainGroupTask",
    "TrainTask",
    "WrangleTask",
    "decode",
    "encode",
    "needed_imports",
    "run_task",
]

Task = (
    WrangleTask
    | OverlapTask
    | FetchWeightsTask
    | TrainTask
    | TrainGroupTask
    | EvaluateTask
    | PredictTask
    | SubmissionTask
)
_TASKS: dict[str, type[Task]] = {task.__name__: task for task in get_args(Task)}


def encode(task: Task) -> str:
    """One line, the task's name and its fields as JSON, that `decode` turns back into the task."""
    fields = _adapter(type(task).__name__).dump_json(task, by_alias=True).decode()
    return f"{type(task).__name__} {fields}\n"


def decode(line: str) -> Task:
    """What `encode` made a line of; raises ValueError where the line is something else."""
    name, _, fields = line.partition(" ")
    if name not in _TASKS:
        raise ValueError(f"no task is called {name[:40]!r}")
    return _adapter(name).validate_json(fields)


@cache
def _adapter(name: str) -> TypeAdapter[Task]:
    return TypeAdapter(_TASKS[name])


def run_task(task: Task) -> int:
    """Run it in this process; a PipelineError becomes one line and an exit status."""
    from pipeline.errors import PipelineError

    install_dynamo_stub()
    try:
        return task()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED


def needed_imports(task: Task) -> list[str]:
    """The slow imports of a task, which a process can do before it is given the task itself."""
    cells = task.cells if isinstance(task, TrainGroupTask) else (task,) if isinstance(task, TrainTask) else ()
    networks = {cell.spec.train.model.name for cell in cells} - {*CNNS}
    networks = {name for name in networks if not is_own(name)}  # which say themselves what they need
    packages = {"timm" if name.startswith(PREFIX) else "torchvision.models" for name in networks}
    return ["pipeline.training.loop"][: len(cells)] + sorted(packages)
