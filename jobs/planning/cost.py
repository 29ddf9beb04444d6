"""How long cells will take, from those that are finished. Torch-free."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from jobs.clusters.billing import requested
from jobs.clusters.profile import Profile, Resources
from jobs.planning.plan import Plan, PlannedCell, PlannedData
from jobs.planning.tasks import resources_for
from pipeline.spec import RunSpec, TrainSpec
from pipeline.storage.jsonl import read_jsonl

_START_S = 30.0  # imports, staging, the first batch


def cell_hours(plan: Plan, profile: Profile, cells: Sequence[PlannedCell], cluster: str) -> dict[str, float]:
    """Hours that each cell (by folder name) takes, where a similar one has finished in this experiment.

    Similar is one of the same network and picture size, on the same kind of device.
    """
    speeds = _speeds(plan)
    images_of = {
        data.split: _training_images(data) for data in {cell.data.split: cell.data for cell in cells}.values()
    }
    hours = {}
    for cell in cells:
        gpus = cell.cell.spec.run.gpus_per_cell
        train, own = cell.cell.spec.train, resources_for(cell, profile)
        speed = speeds.get((_device(cluster, own.train, profile, gpus), *_kind(train)))
        images = images_of[cell.data.split]
        if speed and images:
            seconds = _START_S + train.epochs * images / speed
            hours[cell.run.name] = seconds / 3600
    return hours


def _here(gpus: int) -> str:
    return "local" if gpus == 1 else f"local, {gpus} GPUs"


def _device(cluster: str, resources: Resources, profile: Profile, gpus: int) -> str:
    if profile.scheduler == "local":
        return _here(gpus)
    return f"{cluster}: {device_of(resources)}"


def device_of(resources: Resources) -> str:
    """What a job of these resources trains on, in words: cells on the same are about as fast."""
    nodes = requested(resources).nodes
    kind = str(resources.gres or resources.gpus_per_node or "cpu")
    return f"{kind} on {nodes} nodes" if nodes > 1 else kind


def better_apart(run: RunSpec, missing: int, at_once: int) -> str | None:
    """A word where cells over GPUs would end sooner than each on several, of which `at_once` train together.

    So where the GPUs are kept busy by a cell each: nothing is exchanged then.
    """
    each = run.gpus_per_cell
    gpus = each * at_once
    if each == 1 or math.ceil(missing / gpus) * each > math.ceil(missing / at_once):
        return None
    return (
        f"run.gpus_per_cell: {each}: {missing} cells are missing and {at_once} train at once; they would end sooner "
        "with a GPU for each cell (run.gpus_per_cell: 1), as nothing is exchanged between GPUs then"
    )


def _devices(plan: Plan) -> dict[str, str]:
    """On what each cell was last trained, by the ledger."""
    found = {}
    for event in read_jsonl(plan.experiment.ledger):
        if event["event"] == "queued" and "cell" in event:
            found[event["cell"]] = _here(event.get("gpus", 1))
        elif event["event"] == "submitted" and "cell" in event:
            found[event["cell"]] = f"{event.get('cluster')}: {event.get('device')}"
    return found


def _kind(train: TrainSpec) -> tuple[Any, ...]:
    """Cells of one are about as fast as each other."""
    model = train.model
    return model.name, str(model.options), model.trainable, train.image_px, train.cached_views is None


def _speeds(plan: Plan) -> dict[tuple[Any, ...], float]:
    """Median images/s, validation included, of finished cells by device, network and picture size."""
    found: dict[tuple[Any, ...], list[float]] = {}
    devices = _devices(plan)
    for cell in plan.cells:
        if cell.reason is None and cell.run.name in devices:
            rows = read_jsonl(cell.run.metrics)
            speeds = [row["train/images_per_s"] for row in rows if row.get("train/images_per_s")]
            if speeds:
                key = (devices[cell.run.name], *_kind(cell.cell.spec.train))
                found.setdefault(key, []).append(statistics.median(speeds))
    return {key: statistics.median(speeds) for key, speeds in found.items()}


def _training_images(data: PlannedData) -> int:
    # scoring is the forward third
    return data.images.get("train", 0) + data.images.get("validation", 0) // 3
