"""TensorBoard's summaries as protocol buffers, each as small as it can be. Torch-free.

Written by hand instead of by torch's SummaryWriter, whose `add_hparams` opens a run of its own beside
the cell's, and whose pictures and curves are several times the size.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.pr_curve import metadata as pr_curves
from tensorboard.plugins.text import metadata as texts

# N images
_THRESHOLDS = 51  # of a PR curve: every 2 %, 1.3 kB a label
_BINS = 20
_AT_ONCE = 2**18  # scores
NO_TAGS = frozenset({"step", "epoch", "best_epoch", "best_value"})  # of a row of metrics.jsonl: no curves

Value = Any  # a Summary.Value; protocol buffers carry no types


def kept(paths: Iterable[Path], rows: Sequence[Mapping[str, Any]], until: int) -> list[Any]:
    """The events of the files up to step `until`, in order, each (tag, step) once; `rows` adds what they lack."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[tuple[str, int], Any] = {}
    for path in paths:
        for event in LegacyEventFileLoader(str(path)).Load():  # ends at the first damaged record
            for value in event.summary.value:
                if event.step <= until:
                    found[value.tag, event.step] = at(event.step, value, wall_time=event.wall_time)
    for row in rows:
        for tag in row.keys() - NO_TAGS:
            found.setdefault((tag, row["step"]), at(row["step"], scalar(tag, row[tag])))
    return sorted(found.values(), key=lambda event: int(event.step))


def at(step: int, *values: Value, wall_time: float | None = None) -> Any:
    """The event of these values at `step`, logged now or at another time."""
    summary = Summary(value=values)
    return Event(wall_time=time.time() if wall_time is None else wall_time, step=step, summary=summary)


def scalar(tag: str, value: float) -> Value:
    """One point of a curve."""
    return Summary.Value(tag=tag, simple_value=value)


def picture(tag: str, jpeg: bytes, size: tuple[int, int]) -> Value:
    """An encoded picture; `size` is (width, height)."""
    image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=jpeg)
    return Summary.Value(tag=tag, image=image)


def text(tag: str, markdown: str) -> Value:
    """A text for the Text tab."""
    metadata = texts.create_summary_metadata(tag, "")
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()], tensor_shape=TensorShapeProto())
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def score_histogram(tag: str, scores: npt.NDArray[np.float32]) -> Value:
    """The histogram of scores (M,) in [0, 1], some at a time: every epoch writes two."""
    edges = np.linspace(0, 1, _BINS + 1, dtype=np.float32)
    above = np.append(edges[1:], np.float32(np.inf))
    counts, total, squares = np.zeros(_BINS + 1, np.int64), 0.0, 0.0
    for start in range(0, len(scores), _AT_ONCE):
        some = scores[start : start + _AT_ONCE]
        exact = some.astype(np.float64)
        total += float(exact.sum())
        squares += float(np.square(exact).sum())
        exact *= _BINS  # without rounding, unlike an edge: a score may reach the next
        bin_of = exact.astype(np.int64)
        bin_of += some >= above[bin_of]
        counts += np.bincount(bin_of, minlength=_BINS + 1)
    counts[-2] += counts[-1]  # the last bin holds 1 too
    histogram = HistogramProto(
        min=float(scores.min(initial=1.0)) if scores.size else 0.0,
        max=float(scores.max(initial=0.0)),
        num=scores.size,
        sum=total,
        sum_squares=squares,
        bucket_limit=edges[1:].tolist(),
        bucket=counts[:-1].tolist(),
    )
    return Summary.Value(tag=tag, histo=histogram)


def pr_curve(tag: str, scores_N: npt.NDArray[np.float32], targets_N: npt.NDArray[np.uint8]) -> Value:
    """Precision and recall of one label at evenly spaced thresholds, as the PR curves tab reads them."""
    bucket_N = np.floor(scores_N * (_THRESHOLDS - 1)).astype(np.int64)
    true_T, false_T = (
        np.bincount(bucket_N[targets_N == wanted], minlength=_THRESHOLDS)[::-1].cumsum()[::-1]
        for wanted in (1, 0)
    )
    positives, negatives = int(targets_N.sum()), int((targets_N == 0).sum())
    precision_T = true_T / np.maximum(true_T + false_T, 1)
    recall_T = true_T / max(positives, 1)
    rows = [true_T, false_T, negatives - false_T, positives - true_T, precision_T, recall_T]
    curve = np.stack(rows).astype(np.float32)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in curve.shape])
    tensor = TensorProto(dtype=DT_FLOAT, tensor_shape=shape, tensor_content=curve.tobytes())
    return Summary.Value(
        tag=tag, tensor=tensor, metadata=pr_curves.create_summary_metadata(tag, "", _THRESHOLDS)
    )


def session_start(name: str, settings: Mapping[str, Any]) -> Value:
    """The settings of a cell, for the HParams tab; numbers, booleans and texts."""
    start = plugin_data_pb2.SessionStartInfo(group_name=name)
    for key, value in settings.items():
        kind = "bool_value" if isinstance(value, bool) else "number_value"
        if not isinstance(value, bool | int | float):
            kind, value = "string_value", "none" if value is None else str(value)
        setattr(start.hparams[key], kind, value)
    return _session(
        hparams.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start)
    )


def session_end() -> Value:
    """The cell is finished."""
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    return _session(hparams.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end))


def _session(tag: str, content: Any) -> Value:
    metadata = hparams.create_summary_metadata(content)
    return Summary.Value(tag=tag, tensor=hparams.NULL_TENSOR, metadata=metadata)
