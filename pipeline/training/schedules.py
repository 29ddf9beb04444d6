"""Learning-rate schedules: the factor on the learning rate as a function of the step. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

from pipeline.spec import Constant, Cosine, CosineRestarts, OneCycle, Plateau, ScheduleSpec, Step


def lr_scale(schedule: ScheduleSpec, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The factor for the 0-based `step`. Warm-up rises linearly to 1; the schedule runs over the rest."""
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    after = step - warmup
    progress = after / max(epochs * steps_per_epoch - warmup, 1)
    if isinstance(schedule, Cosine):
        return _cosine(1.0, schedule.final_fraction, progress)
    if isinstance(schedule, CosineRestarts):
        return _cosine(1.0, schedule.final_fraction, _restarts(schedule, after / steps_per_epoch))
    if isinstance(schedule, Step):
        return float(schedule.factor ** math.floor(after / (schedule.every_epochs * steps_per_epoch)))
    if isinstance(schedule, OneCycle):
        ends = schedule.start_fraction, 1.0, schedule.final_fraction
        return _up_and_down(schedule, after, epochs * steps_per_epoch - warmup, ends)
    if isinstance(schedule, Constant | Plateau):
        return 1.0  # plateau's factor is in PlateauState
    assert_never(schedule)


@dataclass(frozen=True)
class PlateauState:
    """What a plateau schedule remembers; its factor stays 1 under every other schedule."""

    factor: float = 1.0
    bad_epochs: int = 0

    def after_epoch(self, schedule: ScheduleSpec, *, is_best: bool, informative: bool) -> PlateauState:
        """The state after an epoch: whether it was the best so far, and whether its monitor could tell."""
        if not isinstance(schedule, Plateau):
            return self
        if is_best:
            return PlateauState(self.factor, 0)
        if self.bad_epochs + informative < schedule.patience_epochs:
            return PlateauState(self.factor, self.bad_epochs + informative)
        return PlateauState(self.factor * schedule.factor, 0)


def momentum_at(schedule: ScheduleSpec, step: int, steps_per_epoch: int, epochs: int) -> float | None:
    """The momentum of the 0-based `step` where the schedule moves it: high where the rate is low; else None."""
    if not isinstance(schedule, OneCycle) or schedule.momentum is None:
        return None
    low, high = schedule.momentum
    warmup = schedule.warmup_epochs * steps_per_epoch
    after = max(step - warmup, 0)
    return _up_and_down(schedule, after, epochs * steps_per_epoch - warmup, (high, low, high))


def _up_and_down(schedule: OneCycle, after: float, steps: float, ends: tuple[float, float, float]) -> float:
    """Of step `after` of `steps`: from the first value to the second, and to the third at the very last step.

    As torch's OneCycleLR counts: the rise ends at step `pct_start * steps - 1`.
    """
    start, middle, end = ends
    peak, last = schedule.pct_start * steps - 1, steps - 1
    if after < peak:
        return _cosine(start, middle, after / peak)
    return _cosine(middle, end, (after - peak) / max(last - peak, 1e-12))


def _restarts(schedule: CosineRestarts, epoch: float) -> float:
    """Where an epoch (with fractions) lies in its cycle, from 0 to 1; each is `factor` times as long as the last."""
    length, left = schedule.first_epochs, epoch
    while left >= length:
        left -= length
        length *= schedule.factor
    return left / length


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
