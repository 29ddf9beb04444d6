"""Curves of a cell: TensorBoard events and `metrics.jsonl`, the same tags in both.

After a resume both go on from the checkpoint's step: what was logged beyond it is dropped, since it
will be logged again.
"""

from __future__ import annotations

import json

from torch.utils.tensorboard import SummaryWriter

from pipeline.files import atomic_write
from pipeline.jsonl import read_jsonl
from pipeline.rundir import RunDir


class Tracker:
    """Appends rows of scalars to both files; one per cell."""

    def __init__(self, run: RunDir, resumed_at: int) -> None:
        kept = [row for row in read_jsonl(run.metrics) if row["step"] <= resumed_at]
        with atomic_write(run.metrics, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = run.metrics.open("a", encoding="utf-8")
        begun_before = any(run.path.glob("events.out.tfevents.*"))
        self._events = SummaryWriter(str(run.path), purge_step=resumed_at + 1 if begun_before else None)

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """One row of `tag -> value` after `step` steps and in `epoch`, counted from 1."""
        self._file.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
        self._file.flush()
        for tag, value in values.items():
            self._events.add_scalar(tag, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()
