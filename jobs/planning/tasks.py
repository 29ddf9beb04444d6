"""What a plan asks to be run: a task per stage and cell, and the resources it wants. Torch-free."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from jobs.clusters.billing import gpu_count
from jobs.clusters.profile import Profile, Resources
from jobs.planning.plan import Plan, PlannedCell, PlannedData, data_root, planned_data, weights_folder
from jobs.stages import (
    EvaluateTask,
    FetchWeightsTask,
    OverlapTask,
    PredictTask,
    SubmissionTask,
    TrainTask,
    WrangleTask,
)
from pipeline.errors import PipelineError
from pipeline.evaluation.selection import TestImages
from pipeline.spec import ModelSpec, ResourceRule, RunSpec, TrainSpec
from pipeline.spec.grid import matches
from pipeline.spec.identity import digest
from pipeline.storage.run_dir import RunDir

_PACKING = {"cells_per_job", "concurrent_cells"}


def resources_for(cell: PlannedCell, profile: Profile) -> Profile:
    """The profile as this cell wants it: changed by the spec's `run.resources` that match the cell, and by its GPUs."""
    for rule in cell.cell.spec.run.resources:
        if rule.stage == "train" and matches(cell.cell.spec, rule.when):
            packing = rule.model_dump(include=_PACKING, exclude_none=True)
            profile = profile.model_copy(update={"train": _changed(profile.train, rule), **packing})
    return _with_gpus(profile, cell.cell.spec.run)


def _with_gpus(profile: Profile, run: RunSpec) -> Profile:
    """Where several GPUs train a cell, as many on each node; cores and memory come with them."""
    if run.gpus_per_cell == 1:
        return profile
    train, nodes = profile.train, run.nodes_per_cell
    gpus = run.gpus_per_cell // nodes * profile.concurrent_cells
    update: dict[str, Any] = {"sbatch": train.sbatch | ({"nodes": nodes} if nodes > 1 else {})}
    times = gpus / max(1, gpu_count(train.gres, train.gpus_per_node))
    if times > 1:
        update |= {"cpus": math.ceil(train.cpus * times), "mem_gb": train.mem_gb and train.mem_gb * times}
        if train.gpus_per_node:
            update["gpus_per_node"] = gpus
        elif train.gres:
            update["gres"] = re.sub(r"gpu((?::[\w.]+)??)(?::\d+)?(?=,|$)", rf"gpu\1:{gpus}", train.gres)
    return profile.model_copy(update={"train": train.model_copy(update=update)})


def stage_resources(plan: Plan, given: Resources, stage: Literal["wrangle", "final"]) -> Resources:
    """What the job of a stage asks for: `given`, changed by the spec's `run.resources` of that stage."""
    for rule in plan.loaded.spec.run.resources:
        if rule.stage == stage:
            given = _changed(given, rule)
    return given


def final_resources(plan: Plan, profile: Profile, *, submission: bool) -> Resources:
    """What the final job asks for: with a submission it scores the test images, which wants what training wants.

    Of a cell over several nodes the GPUs of one: the others would wait for the leaderboard first.
    """
    run = plan.loaded.spec.run
    on_node = {"gpus_per_cell": run.gpus_per_cell // run.nodes_per_cell, "nodes_per_cell": 1}
    alone = profile.model_copy(update={"concurrent_cells": 1})
    train = _with_gpus(alone, run.model_copy(update=on_node)).train
    return stage_resources(plan, train if submission else profile.cpu, "final")


def _changed(resources: Resources, rule: ResourceRule) -> Resources:
    """The resources with what a rule says; of its options of sbatch each by itself."""
    update = rule.model_dump(exclude={"stage", "when", "sbatch", *_PACKING}, exclude_none=True)
    empty = {key: None for key, value in update.items() if value == ""}
    return resources.model_copy(update=update | empty | {"sbatch": resources.sbatch | rule.sbatch})


def train_task(plan: Plan, cell: PlannedCell) -> TrainTask:
    """The task that trains a cell."""
    spec, data = cell.cell.spec, cell.data
    shares = plan.loaded.spec.grid.share_process
    return TrainTask(
        run=cell.run,
        spec=spec,
        identity=cell.identity,
        packed=data.packed,
        split=data.split_file,
        weights_folder=weights_folder(plan.root),
        stream=stream_key(spec.train, data.digest) if shares else "",
        code=cell.code.frozen_in(plan.experiment.code) if cell.code else None,
        weights_digest=cell.weights_digest,
    )


def evaluate_task(plan: Plan, reasons: Mapping[str, str] | None = None) -> EvaluateTask:
    """The task that makes the leaderboard; `reasons` why cells are not complete that cannot say it themselves."""
    monitor = plan.loaded.spec.train.monitor
    sets = tuple((data.packed, data.split_file) for data in plan.datasets)
    return EvaluateTask(plan.evaluation, monitor, sets, dict(reasons or {}))


def predict_task(plan: Plan, tests: Mapping[RunDir, PlannedData]) -> PredictTask:
    """The task that scores the test images of cells."""
    return PredictTask(plan.experiment, _by_name(tests), plan.loaded.spec.run.device)


def submission_task(plan: Plan, tests: Mapping[RunDir, PlannedData] | None = None) -> SubmissionTask:
    """The task that predicts and writes the submission of the cells in `tests`, or of those selected by then."""
    spec = plan.loaded.spec
    if tests is None:
        both = plan.tests_of_others | plan.tests
        images = {name: (test.packed, test.split) for name, test in both.items()}
    else:
        images = _by_name(tests)
    return SubmissionTask(
        plan.experiment,
        None if tests is None else tuple(images),
        images,
        spec.run.device,
        spec.evaluate,
        _trained_on(plan, tests or {}),
    )


def _trained_on(plan: Plan, tests: Mapping[RunDir, PlannedData]) -> dict[str, tuple[Path, Path]]:
    """The packed set and split of each cell, by folder name; of cells outside this grid those in `tests`."""
    trained = {cell.run.name: cell.data for cell in plan.cells}
    others = {RunDir(plan.experiment.path / name): test for name, test in plan.tests_of_others.items()}
    for run, test in (others | dict(tests)).items():
        if run.name not in trained:
            with contextlib.suppress(PipelineError):  # only what it says of an overlap would be missing
                trained[run.name] = planned_data(test.data, plan.root)
    return {name: (data.packed, data.split_file) for name, data in trained.items()}


def _by_name(tests: Mapping[RunDir, PlannedData]) -> dict[str, TestImages]:
    return {run.name: (test.packed, test.split) for run, test in tests.items()}


def wrangle_task(plan: Plan, data: PlannedData) -> WrangleTask:
    """The task that packs a data set."""
    return WrangleTask(data.data, data_root(plan.root), test=data.split is None)


def overlap_task(data: PlannedData, test: PlannedData) -> OverlapTask:
    """The task that compares a training set with its test set, once both are packed."""
    return OverlapTask(data.data, data.packed, data.split_file, test.packed)


def weights_task(plan: Plan, model: ModelSpec) -> FetchWeightsTask:
    """The task that downloads the weights a network names."""
    return FetchWeightsTask(model, weights_folder(plan.root))


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
