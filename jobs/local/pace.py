"""How fast processes are, and when all that wait behind them will be done, by what they report."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.progress import BATCH, State


@dataclass
class Pace:
    """One process: its newest state, and where the work in hand and its training began."""

    began: float  # seconds of the monotonic clock, like all times here
    state: State = field(default_factory=State)
    _first: State = field(default_factory=State)  # of the work in hand
    _trained: tuple[float, float] | None = None  # (time, trained fraction of all epochs), first and newest
    _newest: tuple[float, float] = (0.0, 0.0)

    def take(self, state: State) -> None:
        """It reports this."""
        now, first = state, self._first
        goes_on = (now.doing, now.epoch, now.total) == (first.doing, first.epoch, first.total)
        if not goes_on or now.done < self.state.done:
            self._first = state
        self.state = state
        if state.doing == BATCH and state.total and state.epochs:
            self._newest = state.at, (state.epoch - 1 + state.done / state.total) / state.epochs
            if self._trained is None or self._trained[1] > self._newest[1]:
                self._trained = self._newest

    @property
    def per_s(self) -> float:
        """Images (or what else is the unit) in a second of the work in hand; 0: not known yet."""
        seconds = self.state.at - self._first.at
        return (self.state.amount - self._first.amount) / seconds if seconds > 0 else 0.0

    def busy_s(self, now: float) -> float:
        """How long the work in hand has lasted."""
        return now - (self._first.at or self.began)

    def left_s(self, now: float) -> float | None:
        """Until its last epoch is trained, with what came between the batches so far; None: not known yet.

        Early stopping may end it before.
        """
        if self._trained is None or (fraction := self._newest[1] - self._trained[1]) <= 0:
            return None
        seconds = (self._newest[0] - self._trained[0]) / fraction * (1 - self._newest[1])
        return max(0.0, seconds - (now - self._newest[0]))

    def work_left_s(self, now: float) -> float | None:
        """Until the work in hand is done, whatever follows; None: not known yet."""
        done = self.state.done - self._first.done
        if done <= 0 or not self.state.total:
            return None
        seconds = (self.state.at - self._first.at) / done * (self.state.total - self.state.done)
        return max(0.0, seconds - (now - self.state.at))


@dataclass(frozen=True)
class Left:
    """Seconds until all is done; `at_least` where something of it is not known yet."""

    seconds: float
    at_least: bool = False


def time_left(
    running: Sequence[tuple[Pace, int]], waiting: Sequence[int], ended_s: Sequence[float], now: float
) -> Left | None:
    """Until the cells of processes that run (each with their number) and of those behind them are trained.

    One that waits takes as long for each of its cells as those that are known: `ended_s` are the seconds of
    each that has ended. None where nothing is known.
    """
    known = [pace.left_s(now) for pace, _ in running]
    a_cell = [*ended_s]
    for (pace, cells), left in zip(running, known, strict=True):
        if left is not None:
            a_cell.append((now - pace.began + left) / cells)
    mean_s = sum(a_cell) / len(a_cell) if a_cell else None
    ends: list[float] = []
    for (pace, cells), left in zip(running, known, strict=True):
        if left is None and mean_s is not None:
            left = max(0.0, cells * mean_s - (now - pace.began))
        ends.append(pace.work_left_s(now) or 0.0 if left is None else left)
    if mean_s is None:  # the work in hand is all that is known
        return Left(max(ends), at_least=True) if any(ends) else None
    heapq.heapify(ends)
    for cells in waiting:
        heapq.heapreplace(ends, ends[0] + cells * mean_s)
    return Left(max(ends))
