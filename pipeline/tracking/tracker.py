"""Curves of a cell: TensorBoard events and `metrics.jsonl`, the same tags in both.

After a resume both go on from the checkpoint's step: what was logged beyond it is dropped, since it
will be logged again. Settings, pictures, score histograms and PR curves are TensorBoard's alone.

One event file holds all, begun anew at each start with what is kept, and older ones are emptied: of
several files some readers show every step they find, others hide what a later file purges, and the
curve would depend on the reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from pipeline.metrics.multilabel import Decisions, Scores, all_metrics
from pipeline.storage.files import atomic_write
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import RunDir
from pipeline.tracking import events
from pipeline.tracking.pictures import Mistakes, Pixels, jpeg, sheet

# N images, K labels
SHOWN_IMAGES = 16  # of the first training batch
_SHOWN_LABELS = 24  # with PR curve and mistakes, the most frequent ones
_SHOWN_MISTAKES = 4  # of each kind
_BEST = ("f1_micro", "f1_macro", "map_macro", "exact_match")  # of the best epoch: first in the HParams tab
_PX = 80  # a small picture's side


class Tracker:
    """Appends rows of scalars to both files; one per cell."""

    def __init__(
        self, run: RunDir, resumed_at: int, settings: Mapping[str, Any], digest: str | None = None
    ) -> None:
        """`digest`: of `metrics.jsonl` when the state of step `resumed_at` was saved."""
        kept = [row for row in read_jsonl(run.metrics) if row["step"] <= resumed_at]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        if digest is not None and digest != hashlib.sha256(lines.encode()).hexdigest():
            print(f"{run.metrics}: is damaged; the curves begin anew after step {resumed_at}", flush=True)
            kept, lines = [], ""
        self._hash = hashlib.sha256(lines.encode())
        with atomic_write(run.metrics, "w") as file:
            file.write(lines)
        self._file = run.metrics.open("a", encoding="utf-8")
        before = sorted(run.path.glob("events.out.tfevents.*"))
        kept_events = events.kept(before, kept, resumed_at) if resumed_at else []
        self._events = EventFileWriter(str(run.path))
        if before:
            # a TensorBoard that is looking on forgets what it saw of the files before this one
            restart = SessionLog(status=SessionLog.START)
            self._events.add_event(Event(wall_time=time.time(), step=0, session_log=restart))
        for event in kept_events:
            self._events.add_event(event)
        self._events.flush()
        for path in before:
            os.truncate(path, 0)  # not removed: a TensorBoard that reads it would stay there for ever
        if resumed_at == 0:
            self._add(0, events.session_start(run.name, settings))

    def log(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """One row of `tag -> value` after `step` steps and in `epoch`, counted from 1."""
        line = json.dumps({"step": step, "epoch": epoch, **values}) + "\n"
        self._hash.update(line.encode())
        self._file.write(line)
        self._file.flush()
        self._add(step, *(events.scalar(tag, value) for tag, value in values.items()))

    def training_images(self, images_BHWC: Pixels) -> None:
        """The first training images as the network sees them."""
        px = min(_PX, images_BHWC.shape[1])
        self._picture(0, "augmented/first_batch", list(images_BHWC), columns=8, px=px)

    def score_histograms(self, step: int, scores_NK: Scores, targets_NK: Decisions) -> None:
        """How far apart the scores of true and of absent labels lie."""
        for name, wanted in (("true", 1), ("absent", 0)):
            tag = f"validation/scores_of_{name}_labels"
            self._add(step, events.score_histogram(tag, scores_NK[targets_NK == wanted]))

    def result(
        self,
        step: int,
        epoch: int,
        labels: Sequence[str],
        scores_NK: Scores,
        targets_NK: Decisions,
        images: Callable[[list[int]], Pixels],
    ) -> None:
        """The best epoch on validation: metrics, PR curves, worst mistakes; `images` gives pixels by position.

        Logged one step beyond the last: a start that has to finish again drops it like any later step.
        """
        step += 1
        metrics = all_metrics(scores_NK, (scores_NK >= 0.5).astype(np.uint8), targets_NK)
        self.log(step, epoch, {f"best/{name}": metrics[name] for name in _BEST})
        frequent = np.argsort(-targets_NK.sum(axis=0), kind="stable")[:_SHOWN_LABELS]
        for k in sorted(frequent):
            scores_N, targets_N = scores_NK[:, k], targets_NK[:, k]
            self._add(step, events.pr_curve(f"validation/{labels[k]}", scores_N, targets_N))
            mistakes = Mistakes.of(scores_N, targets_N, _SHOWN_MISTAKES)
            for kind, chosen in (
                ("false_positives", mistakes.false_positives),
                ("false_negatives", mistakes.false_negatives),
            ):
                if chosen:
                    captions = [f"{scores_N[i]:.3f}" for i in chosen]
                    tag = f"{kind}/{labels[k]}"
                    pictures = list(images(chosen))
                    self._picture(step, tag, pictures, columns=_SHOWN_MISTAKES, px=_PX, captions=captions)
        self._add(step, events.session_end())

    def flush(self) -> str:
        """Bring to the files what a resume from this moment must find there; the digest of `metrics.jsonl`."""
        self._events.flush()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()

    def _picture(self, step: int, tag: str, images: Sequence[Pixels], **layout: Any) -> None:
        whole = sheet(images, **layout)
        self._add(step, events.picture(tag, jpeg(whole), whole.size))

    def _add(self, step: int, *values: events.Value) -> None:
        self._events.add_event(events.at(step, *values))
