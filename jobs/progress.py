"""What a local run shows: a line per event, and in a terminal one live line below."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

_REFRESH_S = 1.0
_PLAIN_EVERY_S = 30.0
_BAR_WIDTH = 24


class Progress:
    """Reports on `total` jobs; the live line shows the epoch and score of what runs."""

    def __init__(self, what: str, total: int, by: str = "f1_micro", out: TextIO | None = None) -> None:
        self.what, self.total, self.by = what, total, by
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.done = 0
        self.running: dict[str, tuple[Path | None, int, float]] = {}
        self._last = time.monotonic()

    def started(self, name: str, watch: Path | None, epochs: int) -> None:
        """A job began."""
        self.running[name] = (watch, epochs, time.monotonic())

    def ended(self, name: str, how: str, *, ok: bool) -> None:
        """A job ended; `how` in a few words."""
        watch, epochs, began = self.running.pop(name)
        self.done += 1
        row = last_epoch(watch) if epochs else {}
        score = row.get(f"validation/{self.by}")
        result = f"  {self.by} {score:.4f}" if ok and score is not None else ""
        seconds = time.monotonic() - began
        mark = "ok  " if ok else "FAIL"
        text = f"{how}{result}" if not ok or how != "done" or result else how
        self._line(f"  {mark} {self.done}/{self.total} {name}: {text}  ({seconds:.0f} s)")

    def tick(self) -> None:
        """Refresh the live line, or now and then print a plain one."""
        now = time.monotonic()
        if not self.running or now - self._last < (_REFRESH_S if self.live else _PLAIN_EVERY_S):
            return
        self._last = now
        parts = [self._short(name, *state) for name, state in self.running.items()]
        text = f"  .... {self.done}/{self.total} {self.what}; " + "; ".join(parts)
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.out.write("\r\x1b[K" + text[:width])
            self.out.flush()
        else:
            self._line(text[:200])

    def _short(self, name: str, watch: Path | None, epochs: int, began: float) -> str:
        row = last_epoch(watch) if epochs else {}
        if not row:
            return f"{name} {_bar(watch) if not epochs else ''}{time.monotonic() - began:.0f} s"
        score = row.get(f"validation/{self.by}")
        shown = f" {self.by} {score:.3f}" if score is not None else ""
        left = (time.monotonic() - began) / max(row["epoch"], 1) * (epochs - row["epoch"])
        return f"{name} epoch {row['epoch']}/{epochs}{shown} ~{left:.0f} s left"

    def _line(self, text: str) -> None:
        self.out.write(("\r\x1b[K" if self.live else "") + text + "\n")
        self.out.flush()


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
