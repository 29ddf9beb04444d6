"""When training is saved: often enough to lose little, rarely enough to cost little."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.spec import RunSpec
from pipeline.training.learner import Learner


class Checkpointer:
    """Saves learners that train together, together, and measures what it costs.

    A save that is not asked for by a signal or the end waits while it would cost more than
    `run.save_fraction` of the time since the last one. Steps that are not saved are repeated after a
    kill, from the state before, with the same bits.
    """

    def __init__(self, run: RunSpec) -> None:
        self._every_s, self._fraction = 60 * run.save_every_min, run.save_fraction
        self._saved_at, self._cost_s = time.monotonic(), 0.0  # the first save is cheap until it is measured

    @property
    def affordable(self) -> bool:
        """Whether a save like the last one would stay within its fraction of the time."""
        return self._cost_s <= self._fraction * (time.monotonic() - self._saved_at)

    @property
    def due(self) -> bool:
        """Whether `run.save_every_min` have passed, and a save is affordable."""
        return time.monotonic() - self._saved_at > self._every_s and self.affordable

    def save(self, learners: Sequence[Learner]) -> None:
        """Save all of them now; one that cannot be saved fails by itself."""
        if not learners:
            return
        started = time.monotonic()
        for learner in learners:
            with learner.attempt.isolated():
                learner.save()
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - started
