"""Learning-rate schedules: the factor on the learning rate as a function of the step. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

from pipeline.spec import Constant, Cosine, OneCycle, Plateau, ScheduleSpec, Step


def lr_scale(schedule: ScheduleSpec, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The factor for the 0-based `step`. Warm-up rises linearly to 1; the schedule runs over the rest."""
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    after = step - warmup
    progress = after / max(epochs * steps_per_epoch - warmup, 1)
    if isinstance(schedule, Cosine):
        return _cosine(1.0, schedule.final_fraction, progress)
    if isinstance(schedule, Step):
        return float(schedule.factor ** math.floor(after / (schedule.every_epochs * steps_per_epoch)))
    if isinstance(schedule, OneCycle):
        if progress < schedule.pct_start:
            return _cosine(schedule.start_fraction, 1.0, progress / schedule.pct_start)
        down = (progress - schedule.pct_start) / max(1 - schedule.pct_start, 1e-12)
        return _cosine(1.0, schedule.final_fraction, down)
    if isinstance(schedule, Constant | Plateau):
        return 1.0  # plateau's factor is in PlateauState
    assert_never(schedule)


@dataclass(frozen=True)
class PlateauState:
    """What a plateau schedule remembers; its factor stays 1 under every other schedule."""

    factor: float = 1.0
    best: float | None = None
    bad_epochs: int = 0

    def after_epoch(self, value: float, schedule: ScheduleSpec, *, better_is_higher: bool) -> PlateauState:
        """The state after an epoch whose validation gave `value`."""
        if not isinstance(schedule, Plateau):
            return self
        if self.best is None or (value > self.best if better_is_higher else value < self.best):
            return PlateauState(self.factor, value, 0)
        if self.bad_epochs + 1 < schedule.patience_epochs:
            return PlateauState(self.factor, self.best, self.bad_epochs + 1)
        return PlateauState(self.factor * schedule.factor, self.best, 0)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
