"""A signal only sets a flag; the training loop looks at it at a step's end, saves and hands over."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """True once SIGTERM, SIGINT or SIGUSR2 has come (a time limit, Ctrl-C, a preemption)."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def install(self) -> StopFlag:
        """Listen; only the main thread can."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._set)
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.reason is not None
