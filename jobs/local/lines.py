"""A line of progress in so many columns: time left first, names shortened in the middle, no number cut."""

from __future__ import annotations

from jobs.local.pace import Left, Pace

_SHORTEST = 9  # of a name that is shortened


def left_in_words(left: Left | None) -> str:
    """`8 min left`, "" where nothing is known; what is known in part is `over`."""
    return "" if left is None else f"{'over ' * left.at_least}{span(left.seconds)} left"


def span(seconds: float) -> str:
    """A time in one or two units, as precise as an estimate is: `40 s`, `8 min`, `2 h 05 min`, `3 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def work_in_words(pace: Pace, now: float) -> list[str]:
    """What a process does, from what matters most: `epoch 2/5`, `batch 120 of 469`, `31 images/s`."""
    state = pace.state
    parts = [f"epoch {state.epoch}/{state.epochs}"] if state.epochs else []
    what = state.doing or "starting"
    if state.total:
        what += f" {state.done:,} of {state.total:,}"
    elif state.done:
        what += f" {state.done:,}"
    speed = pace.per_s
    if speed:
        rate = f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
        return [*parts, what, f"{rate} {state.unit}/s"]
    return [*parts, what] if state.total else [*parts, what, span(pace.busy_s(now))]


def fitted(head: str, name: str, parts: list[str], width: int | None) -> str:
    """`head  name: part, part`; what does not fit goes: the middle of the name, the last parts, the name, the head."""
    before = f"{head}  " if head else ""
    for kept in range(len(parts), 0, -1):
        rest = ": " * bool(name) + ", ".join(parts[:kept])
        room = len(name) if width is None else width - len(before) - len(rest)
        if room >= min(len(name), _SHORTEST):
            return before + shortened(name, room) + rest
    if name:
        return fitted(head, "", parts, width)
    if head and width is not None and len(head) > width:
        return fitted("", "", parts, width)
    return head


def shortened(name: str, room: int) -> str:
    """A name in at most `room` columns: its middle goes, for cells differ at their ends."""
    if len(name) <= room:
        return name
    kept = max(0, room - 3)
    return name[: -(-kept // 2)] + "..." + name[len(name) - kept // 2 :]
