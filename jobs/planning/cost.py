"""What cells will take, from those that are finished, and what that costs. Torch-free."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.clusters.profile import Profile, cost_per_hour
from jobs.planning.plan import Plan, PlannedCell
from jobs.planning.tasks import resources_for
from pipeline.spec import TrainSpec
from pipeline.storage.jsonl import read_jsonl

_START_S = 30.0  # imports, staging, the first batch


@dataclass(frozen=True)
class Estimate:
    """Hours of allocation for some cells, and billing units; None where no similar cell has finished."""

    known: int  # of those cells
    hours: float
    units: float | None
    unit: str


def estimate(plan: Plan, profile: Profile, cells: Sequence[PlannedCell]) -> Estimate:
    """By the speed of finished cells of the same network and picture size in this experiment."""
    speeds = _speeds(plan)
    images_of = {split: _training_images(split) for split in {cell.data.split for cell in cells}}
    hours = units = 0.0
    known = 0
    for cell in cells:
        train = cell.cell.spec.train
        speed = speeds.get(_kind(train))
        images = images_of[cell.data.split]
        if not speed or not images:
            continue
        known += 1
        want = resources_for(cell, profile)
        cell_hours = (_START_S + train.epochs * images / speed) / 3600 / want.concurrent_cells
        hours += cell_hours
        units += cell_hours * cost_per_hour(want.train, profile)
    billed = profile.billing is not None and known > 0
    unit = profile.billing.unit if profile.billing else ""
    return Estimate(known, hours, units * len(cells) / known if billed else None, unit)


def _kind(train: TrainSpec) -> tuple[Any, ...]:
    """Cells of one are about as fast as each other."""
    return train.model.name, train.model.trainable, train.image_px, train.cached_views is None


def _speeds(plan: Plan) -> dict[tuple[Any, ...], float]:
    """Median images/s, validation included, of finished cells by network and picture size."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for cell in plan.cells:
        if cell.reason is None:
            rows = read_jsonl(cell.run.metrics)
            speeds = [row["train/images_per_s"] for row in rows if row.get("train/images_per_s")]
            if speeds:
                found.setdefault(_kind(cell.cell.spec.train), []).append(statistics.median(speeds))
    return {key: statistics.median(speeds) for key, speeds in found.items()}


def _training_images(split: Path | None) -> int:
    if split is None or not split.exists():
        return 0
    counts = json.loads(split.read_text())["counts"]
    # scoring is the forward third
    return int(counts["train"]["images"] + counts["validation"]["images"] // 3)
