"""What a plan asks to be run: a task per stage and cell, and the resources it wants. Torch-free."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from jobs.clusters.profile import Profile
from jobs.planning.plan import Plan, PlannedCell, PlannedData, data_root
from jobs.stages import EvaluateTask, SubmissionTask, TrainTask, WrangleTask
from pipeline.spec import TrainSpec
from pipeline.spec.grid import matches
from pipeline.spec.identity import digest

_PACKING = {"cells_per_job", "concurrent_cells"}


def resources_for(cell: PlannedCell, profile: Profile) -> Profile:
    """The profile as this cell wants it: changed by the spec's `run.resources` that match the cell."""
    for rule in cell.cell.spec.run.resources:
        if matches(cell.cell.spec, rule.when):
            train = rule.model_dump(exclude={"when", *_PACKING}, exclude_none=True)
            packing = rule.model_dump(include=_PACKING, exclude_none=True)
            changed = {"train": profile.train.model_copy(update=train), **packing}
            profile = profile.model_copy(update=changed)
    return profile


def train_task(plan: Plan, cell: PlannedCell) -> TrainTask:
    """The task that trains a cell."""
    return TrainTask(
        run=str(cell.run.path),
        spec=cell.cell.spec.model_dump_json(),
        identity=cell.identity,
        packed=str(cell.data.packed),
        split=str(cell.data.split),
        weights_folder=str(data_root(plan.root) / "weights"),
        stream=stream_key(cell.cell.spec.train, cell.data.digest)
        if plan.loaded.spec.grid.share_process
        else "",
    )


def evaluate_task(plan: Plan) -> EvaluateTask:
    """The task that makes the leaderboard."""
    data, evaluation = plan.datasets[0], plan.evaluation
    return EvaluateTask(
        experiment=str(plan.experiment.path),
        cells=evaluation.cells,
        evaluate=evaluation.evaluate.model_dump_json(),
        submission=evaluation.submission.model_dump_json(),
        monitor=plan.loaded.spec.train.monitor,
        packed=str(data.packed),
        split=str(data.split),
        data_digests=evaluation.data_digests,
    )


def submission_task(plan: Plan, cells: tuple[str, ...] | None) -> SubmissionTask:
    """The task that predicts and writes the submission of `cells`, or of those selected by then."""
    spec = plan.loaded.spec
    tests = {name: (str(t.packed), str(t.split) if t.split else None) for name, t in plan.tests.items()}
    evaluate = spec.evaluate.model_dump_json()
    return SubmissionTask(str(plan.experiment.path), cells, tests, spec.run.device, evaluate)


def wrangle_task(plan: Plan, data: PlannedData) -> WrangleTask:
    """The task that packs a data set."""
    root = str(data_root(plan.root))
    return WrangleTask(data=data.data.model_dump_json(), data_root=root, test=data.split is None)


def stream_key(train: TrainSpec, data_digest: str) -> str:
    """Equal for cells that are trained on the very same batches."""
    own = _without_effect(train, cached=train.cached_views is not None)
    return digest([data_digest, train.model_dump(mode="json", exclude=own)])


def _without_effect(section: BaseModel, *, cached: bool) -> dict[str, Any]:
    """The fields that do not change the batches, by their marks; `cached` batches are of one frozen network."""
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        mark, value = extra.get("same_batches"), getattr(section, name)
        if mark == "always" or (mark == "pixels" and not cached):
            found[name] = True
        elif isinstance(value, BaseModel) and (inner := _without_effect(value, cached=cached)):
            found[name] = inner
    return found
