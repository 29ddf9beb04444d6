"""What a local run shows: a line per event, and in a terminal a live block below, a line per running job."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from pipeline.spec import in_training

_REFRESH_S = 1.0
_PLAIN_EVERY_S = 30.0
_BAR_WIDTH = 24


class Progress:
    """Reports on `total` jobs; the live line shows the epoch and score of what runs."""

    def __init__(self, what: str, total: int, by: str = "map_macro", out: TextIO | None = None) -> None:
        self.what, self.total, self.tag, self.by = what, total, f"validation/{by}", in_training(by)
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.done = 0
        self.running: dict[str, tuple[Path | None, int, float]] = {}
        self.began = self._last = time.monotonic()
        self._drawn = 0  # lines of the live block

    def started(self, name: str, watch: Path | None, epochs: int) -> None:
        """A job began."""
        self.running[name] = (watch, epochs, time.monotonic())

    def ended(self, name: str, how: str, mark: str = "ok") -> None:
        """A job ended; `how` in a few words, `mark` says whether well (`ok`)."""
        watch, epochs, began = self.running.pop(name)
        self.done += 1
        row = last_epoch(watch) if epochs else {}
        result = f"  {self._score(row)}" if mark == "ok" and row else ""
        seconds = time.monotonic() - began
        self._line(f"  {mark:<4} {self.done}/{self.total} {name}: {how}{result}  ({seconds:.0f} s)")

    def tick(self) -> None:
        """Redraw the live block, or now and then print it as one plain line."""
        now = time.monotonic()
        if not self.running or now - self._last < (_REFRESH_S if self.live else _PLAIN_EVERY_S):
            return
        self._last = now
        head = f"  .... {self.done}/{self.total} {self.what}"
        if 0 < self.done < self.total:
            head += f", about {clock((now - self.began) / self.done * (self.total - self.done))} left"
        parts = [self._short(name, *state) for name, state in self.running.items()]
        if not self.live:
            self._line(f"{head}; {'; '.join(parts)}"[:200])
            return
        size = shutil.get_terminal_size()
        lines = [head, *(f"       {part}" for part in parts)][: max(1, size.lines - 2)]
        self.out.write(self._erased() + "".join(line[: size.columns - 1] + "\n" for line in lines))
        self.out.flush()
        self._drawn = len(lines)

    def _short(self, name: str, watch: Path | None, epochs: int, began: float) -> str:
        row = last_epoch(watch) if epochs else {}
        if not row:
            return f"{name}: {_bar(watch) if not epochs else ''}{time.monotonic() - began:.0f} s"
        parts = [f"{name}: epoch {row['epoch']}/{epochs}"]
        if row.get("train/loss") is not None:
            parts.append(f"loss {row['train/loss']:.4f}")
        parts.append(self._score(row))
        if row.get("train/images_per_s") is not None:
            parts.append(f"{row['train/images_per_s']:.0f} images/s")
        return "  ".join([*parts, f"~{clock(seconds_left(row, epochs))} left"])

    def _score(self, row: dict[str, Any]) -> str:
        """The best epoch's value and which it is, and the last one's beside it."""
        last, best, epoch = row.get(self.tag), row.get("best_value"), row.get("best_epoch")
        if best is None or last is None:
            return "" if last is None else f"{self.by} {last:.4f} in epoch {row['epoch']}"
        text = f"best {self.by} {best:.4f} in epoch {epoch}"
        return text if epoch == row["epoch"] else f"{text} (last {last:.4f})"

    def _line(self, text: str) -> None:
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


def _bar(log: Path | None) -> str:
    """A bar for a stage whose log ends in `done/total ...`, as wrangle's does."""
    match = re.match(r"(\d+)/(\d+) ", (_tail(log) or [""])[-1])
    if not match or not int(match[2]):
        return ""
    filled = _BAR_WIDTH * int(match[1]) // int(match[2])
    return f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {match[1]}/{match[2]} "


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
