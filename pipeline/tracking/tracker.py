"""Curves of a cell: TensorBoard events and `metrics.jsonl`, the same tags in both.

After a resume both continue from the checkpoint's step. Later rows are dropped, because they will be
logged again. Settings, pictures, score histograms and PR curves are in TensorBoard alone.

There is one event file. Each start writes a new one with the events to keep, and empties older ones.
With several files, some readers show every step they find and others hide what a later file purges, so
the curve would depend on the reader.
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
from pipeline.spec.question import question
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
_OVERVIEW = "0_overview"  # TensorBoard sorts by name: it opens on these curves
_PX = 80  # a small picture's side


class Tracker:
    """Appends rows of scalars to both files; one per cell."""

    def __init__(
        self,
        run: RunDir,
        resumed_at: int,
        settings: Mapping[str, Any],
        digest: str | None = None,
        *,
        monitor: str = "map_macro",
        ranked_by: str = "f1_micro",
    ) -> None:
        """`digest` is that of `metrics.jsonl` when the state of step `resumed_at` was saved.

        `monitor` is drawn first, and `ranked_by` is the first metric of the HParams tab.
        """
        self._ranked_by = ranked_by
        self._shown_first = ("train/loss", "validation/loss", f"validation/{monitor}", "train/lr")
        kept = [row for row in read_jsonl(run.metrics) if row["step"] <= resumed_at]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        if digest is not None and digest != hashlib.sha256(lines.encode()).hexdigest():
            print(f"{run.metrics}: is damaged; the curves start again after step {resumed_at}", flush=True)
            kept, lines = [], ""
        self._hash = hashlib.sha256(lines.encode())
        with atomic_write(run.metrics, "w") as file:
            file.write(lines)
        self._file = run.metrics.open("a", encoding="utf-8")
        before = sorted(run.path.glob("events.out.tfevents.*"))
        kept_events = events.kept(before, kept, resumed_at) if resumed_at else []
        self._events = EventFileWriter(str(run.path))
        if before:
            # an open TensorBoard then drops what it read from earlier files
            restart = SessionLog(status=SessionLog.START)
            self._events.add_event(Event(wall_time=time.time(), step=0, session_log=restart))
        for event in kept_events:
            self._events.add_event(event)
        self._events.flush()
        for path in before:
            os.truncate(path, 0)  # not removed: an open TensorBoard would wait for it for ever
        if resumed_at == 0:
            self._add(0, events.session_start(run.name, settings))
            asked = question(run.path.parent.with_suffix(".yaml"))
            resolved = run.spec.read_text(encoding="utf-8") if run.spec.exists() else ""
            indented = "".join(f"    {line}\n" for line in resolved.splitlines())  # code, as Markdown has it
            self._add(0, *(events.text(f"about/{name}", body) for name, body in
                           (("question", asked), ("spec", indented)) if body))  # fmt: skip

    def log(
        self, step: int, epoch: int, values: Mapping[str, float], *, best: tuple[int, float] | None = None
    ) -> None:
        """One row of `tag -> value` after `step` steps and in `epoch`, counted from 1.

        In the file, the row of an epoch also names the best one so far: `best` is (epoch, value).
        """
        so_far = {"best_epoch": best[0], "best_value": best[1]} if best else {}
        line = json.dumps({"step": step, "epoch": epoch, **so_far, **values}) + "\n"
        self._hash.update(line.encode())
        self._file.write(line)
        self._file.flush()
        first = [tag for tag in self._shown_first if "validation/loss" in values and tag in values]
        tags = {f"{_OVERVIEW}/{tag.replace('/', '_')}": values[tag] for tag in first}
        self._add(step, *(events.scalar(tag, value) for tag, value in (tags | dict(values)).items()))

    def training_images(self, images_BHWC: Pixels) -> None:
        """The first training images as the network sees them."""
        px = min(_PX, images_BHWC.shape[1])
        self._picture(0, "augmented/first_batch", list(images_BHWC), columns=8, px=px)

    def score_histograms(self, step: int, scores_NK: Scores, targets_NK: Decisions) -> None:
        """Histograms of the scores of true and of absent labels."""
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

        Logged one step beyond the last: a restart that finishes the cell again drops it like any later step.
        """
        step += 1
        metrics = all_metrics(scores_NK, (scores_NK >= 0.5).astype(np.uint8), targets_NK)
        ranked_by = {f"best/0_{self._ranked_by}": metrics[self._ranked_by]}
        self.log(step, epoch, ranked_by | {f"best/{name}": metrics[name] for name in _BEST})
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
        """Flush all that a resume from this step needs; returns the digest of `metrics.jsonl`."""
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


class SilentTracker(Tracker):
    """Of a process that leaves the curves to another one: writes nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def flush(self) -> str:
        """No file, no digest."""
        return ""

    def close(self) -> None:
        """Nothing is open."""

    def _add(self, *_: Any) -> None:
        pass

    def _picture(self, *_: Any, **__: Any) -> None:
        pass
