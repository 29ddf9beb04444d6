"""What a local run shows: a line per event; in a terminal a live block below, elsewhere now and then a plain line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO

from jobs.local.lines import fitted, left_in_words, work_in_words
from jobs.local.pace import Left, Pace, time_left
from pipeline.progress import State, listen
from pipeline.spec import in_training

_REFRESH_S = 0.5
_FIRST_PLAIN_S = 1.0  # what ends before has its line of the end alone
_PLAIN_EVERY_S = 30.0


@dataclass
class _Running:
    """A process: its jobs' metrics by name (None: it writes none), how fast it is, and what it reports."""

    watched: dict[str, Path | None]
    jobs: int
    pace: Pace
    news: Callable[[], Iterable[State]] = field(default=tuple)


class Progress:
    """Reports on `total` jobs: what the processes that run do, and when the last of all will be done."""

    plain_said: ClassVar[float] = float("-inf")  # when this program last said a plain line, whatever it ran

    def __init__(
        self,
        what: str,
        total: int,
        by: str = "map_macro",
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.tag, self.by = what, total, f"validation/{by}", in_training(by)
        self.out, self.now = out or sys.stdout, clock
        self.live = self.out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.done = 0
        self.running: dict[str, _Running] = {}
        self.began, self._last = clock(), float("-inf")
        self._ended_s: list[float] = []  # of each job that ended well
        self._drawn = 0  # lines of the live block

    def started(self, process: str, watched: Mapping[str, Path | None]) -> None:
        """A process began: its jobs by name, each with the metrics it will write, if any."""
        self.running[process] = _Running(dict(watched), len(watched), Pace(self.now()))

    def follow(self, process: str, news: Callable[[], Iterable[State]]) -> None:
        """Ask `news` from now on what it does."""
        self.running[process].news = news

    def ended(self, name: str, how: str, mark: str = "ok") -> None:
        """A job ended; `how` in a few words, `mark` says whether well (`ok`)."""
        process = next(key for key, one in self.running.items() if name in one.watched)
        running = self.running[process]
        seconds, watch = self.now() - running.pace.began, running.watched.pop(name)
        if not running.watched:
            del self.running[process]
        self.done += 1
        score = self._score(last_epoch(watch)) if mark == "ok" else ""
        self._line(
            f"  {mark:<4} {self.done}/{self.total} {name}: {how}{score and '  '}{score}  ({seconds:.0f} s)"
        )
        if mark == "ok":
            self._ended_s.append(seconds / running.jobs)

    def tick(self, waiting: Sequence[int] = ()) -> None:
        """Redraw the live block, or now and then print one plain line; `waiting`: the jobs of each process to come."""
        now = self.now()
        for running in self.running.values():
            for state in running.news():
                running.pace.take(state)
        if not self.running or not self._is_due(now):
            return
        self._last = now
        work = [(name, work_in_words(one.pace, now)) for name, one in self.running.items()]
        head = "  ".join(filter(None, [left_in_words(self._left(now, waiting)), self._counted()]))
        if self.live:
            self._redraw(head, work)
            return
        Progress.plain_said = now
        each = "; ".join(fitted("", *one, None) for one in work)
        self._line("  .... " + "  ".join(filter(None, [head, each])))

    def _is_due(self, now: float) -> bool:
        if self.live:
            return now - self._last >= _REFRESH_S
        return now - self.began >= _FIRST_PLAIN_S and now - Progress.plain_said >= _PLAIN_EVERY_S

    def _left(self, now: float, waiting: Sequence[int]) -> Left | None:
        """Of all cells; of a stage the work in hand."""
        if self.what == "cells":
            return time_left([(r.pace, r.jobs) for r in self.running.values()], waiting, self._ended_s, now)
        seconds = [r.pace.work_left_s(now) for r in self.running.values()]
        return None if not seconds or seconds[0] is None else Left(seconds[0])

    def _counted(self) -> str:
        return "" if self.what != "cells" else f"{self.done}/{self.total} {self.what}"

    def _redraw(self, head: str, work: Sequence[tuple[str, list[str]]]) -> None:
        """A line for each process, below it the scores of its cells; the scores go first where rows are few."""
        size = shutil.get_terminal_size()
        width = size.columns - 1
        if len(work) == 1:
            lines = [fitted(head, *work[0], width)]
        else:
            lines = [fitted(head, "", [], width), *("  " + fitted("", *one, width - 2) for one in work)]
        for running in self.running.values():
            for name, watch in running.watched.items():
                if row := last_epoch(watch):
                    loss = row.get("train/loss")
                    said = [self._score(row), *([] if loss is None else [f"loss {loss:.4f}"])]
                    lines.append("    " + fitted("", name, said, width - 4))
        lines = lines[: max(1, size.lines - 2)]
        self.out.write(self._erased() + "".join(f"{line}\n" for line in lines))
        self.out.flush()
        self._drawn = len(lines)

    def clear(self) -> None:
        """Take the live block away."""
        self.out.write(self._erased())
        self.out.flush()

    def _score(self, row: dict[str, Any]) -> str:
        """The best epoch's value and which it is, and the last one's beside it."""
        last, best, epoch = row.get(self.tag), row.get("best_value"), row.get("best_epoch")
        if best is None or last is None:
            return "" if last is None else f"{self.by} {last:.4f} in epoch {row['epoch']}"
        text = f"best {self.by} {best:.4f} in epoch {epoch}"
        return text if epoch == row["epoch"] else f"{text} (last {last:.4f})"

    def _line(self, text: str) -> None:
        self._last = float("-inf")  # the live block comes again at once
        self.out.write(self._erased() + text + "\n")
        self.out.flush()

    def _erased(self) -> str:
        """What takes the live block away."""
        up, self._drawn = self._drawn, 0
        return f"\x1b[{up}F\x1b[J" if up else ""


def seconds_left(row: dict[str, Any], epochs: int) -> float:
    """Of the epochs after `row`'s, by the steps and seconds of those before; scoring is not counted."""
    epoch = row["epoch"]
    return float(row["step"] / epoch * row.get("train/seconds_per_step", 0.0) * (epochs - epoch))


def clock(seconds: float) -> str:
    """h:mm:ss"""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Show meanwhile, where errors go, what this process itself reports of its work."""
    progress = Progress("stages", 1, out=sys.stderr)
    progress.started("", {"": None})

    def take(state: State) -> None:
        progress.running[""].pace.take(state)
        progress.tick()

    listen(take)
    try:
        yield
    finally:
        listen(None)
        progress.clear()


def _tail(path: Path | None) -> list[str]:
    """The last lines of a file; the first of them may be cut."""
    if path is None or not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        return file.read().decode(errors="replace").splitlines()


def last_epoch(watch: Path | None) -> dict[str, Any]:
    """The newest epoch's row of a metrics.jsonl, read from its end."""
    for line in reversed(_tail(watch)):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "validation/loss" in row:
            return row
    return {}
