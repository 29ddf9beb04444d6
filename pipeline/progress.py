"""How far this process is: counters and the clock, told at most twice a second to the one who listens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

BATCH = "batch"  # what is counted while an epoch is trained
_EVERY_S = 0.5


@dataclass(frozen=True)
class State:
    """What is being done at `at` (seconds of the monotonic clock), and how much of it; 0: not known.

    `doing` ends with what is counted ("packing image"). `amount` of `unit` is done, for a speed.
    """

    doing: str = ""
    done: int = 0
    total: int = 0
    amount: int = 0
    unit: str = "images"
    epoch: int = 0  # from 1 on
    epochs: int = 0
    at: float = 0.0


_told = State()
_listener: Callable[[State], None] | None = None


def listen(listener: Callable[[State], None] | None) -> None:
    """Tell `listener` from now on how far this process is; None: nobody."""
    global _listener, _told
    _listener, _told = listener, State()


def begin_epoch(epoch: int, epochs: int) -> None:
    """What is reported from now on belongs to `epoch` (from 1 on) of so many."""
    global _told
    _told = replace(_told, doing="", epoch=epoch, epochs=epochs)


def report(
    doing: str, done: int = 0, total: int = 0, amount: int | None = None, *, unit: str = "images"
) -> None:
    """`done` of `total` are done; `amount` of `unit`, where that is not `done` itself, gives the speed.

    Another kind of work is told at once, and so is its end; counts between are told now and then.
    """
    global _told
    if _listener is None:
        return
    now, ends = time.monotonic(), 0 < done == total
    if doing == _told.doing and now - _told.at < _EVERY_S and not ends:
        return
    amount = done if amount is None else amount
    _told = State(doing, done, total, amount, unit, _told.epoch, _told.epochs, now)
    _listener(_told)
