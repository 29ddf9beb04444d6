"""What TensorBoard reads of a cell: curves, settings, PR curves and pictures, all in the cell's own folder."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util.tensor_util import make_ndarray

from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import RunDir
from pipeline.tracking import events
from pipeline.tracking.pictures import Mistakes
from pipeline.tracking.tracker import Tracker

LABELS = ["dog", "tree"]
SCORES = np.array([[0.9, 0.2], [0.6, 0.7], [0.1, 0.4], [0.8, 0.3]], np.float32)
TARGETS = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.uint8)
SETTINGS = {"train.optimizer.lr": 0.001, "train.optimizer.name": "adam", "data.image_list": None}


def picture_rows(positions):
    return np.full((len(positions), 16, 16, 3), 100, np.uint8)


def epoch(tracker, number):
    tracker.score_histograms(10 * number, SCORES, TARGETS)
    values = {f"validation/metric_{i}": number / (i + 1) for i in range(26)}
    tracker.log(10 * number, number, values | {"train/loss": 1 / number})


def read(run):
    accumulator = EventAccumulator(str(run.path), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "cell")
    run.path.mkdir()
    return run


@pytest.fixture
def finished(run):
    tracker = Tracker(run, 0, SETTINGS)
    tracker.training_images(picture_rows(range(16)))
    for number in (1, 2, 3):
        epoch(tracker, number)
    tracker.result(30, 3, LABELS, SCORES, TARGETS, picture_rows)
    tracker.close()
    return run


def test_histograms_are_numpy_s_at_the_edges_too(monkeypatch):
    monkeypatch.setattr(events, "_AT_ONCE", 1000)
    edges = np.linspace(0, 1, 21, dtype=np.float32)
    beside = [np.nextafter(edges, np.float32(0)), np.nextafter(edges[:-1], np.float32(1))]
    random = np.random.default_rng(0).random(5000, dtype=np.float32)
    for scores in (np.concatenate([edges, *beside, random]), random[:0]):
        found = events.score_histogram("scores", scores).histo
        counts, limits = np.histogram(scores, bins=20, range=(0, 1))
        assert (list(found.bucket), list(found.bucket_limit)) == (counts.tolist(), limits[1:].tolist())
        assert (found.num, found.sum) == (len(scores), pytest.approx(scores.sum(dtype=float)))
        assert found.sum_squares == pytest.approx((scores.astype(float) ** 2).sum())
        assert (found.min, found.max) == ((scores.min(), scores.max()) if len(scores) else (0, 0))


def test_curves_are_those_of_metrics_jsonl(finished):
    rows = read_jsonl(finished.metrics)
    accumulator = read(finished)
    assert set(accumulator.Tags()["scalars"]) == {tag for row in rows for tag in row} - {"step", "epoch"}
    for tag in accumulator.Tags()["scalars"]:
        points = [(point.step, pytest.approx(point.value)) for point in accumulator.Scalars(tag)]
        assert [(row["step"], row[tag]) for row in rows if tag in row] == points


def test_settings_are_the_runs_own_and_open_no_other_run(finished):
    assert [path for path in finished.path.iterdir() if path.is_dir()] == []
    content = read(finished).SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    start = hparams.parse_session_start_info_plugin_data(content)
    assert start.hparams["train.optimizer.lr"].number_value == 0.001
    assert start.hparams["train.optimizer.name"].string_value == "adam"
    assert start.hparams["data.image_list"].string_value == "none"


def test_a_pr_curve_counts_what_is_at_or_above_each_threshold():
    value = events.pr_curve("x", SCORES[:, 0], TARGETS[:, 0])
    true, false, _, false_negatives, precision, recall = make_ndarray(value.tensor)
    at_70_percent = 35
    assert (true[0], false[0], false_negatives[0]) == (2, 2, 0)
    assert (true[at_70_percent], false[at_70_percent]) == (1, 1)
    assert (precision[at_70_percent], recall[at_70_percent]) == (0.5, 0.5)


def test_mistakes_come_worst_first():
    mistakes = Mistakes.of(SCORES[:, 0], TARGETS[:, 0], 2)
    assert (mistakes.false_positives, mistakes.false_negatives) == ([3, 1], [2, 0])


def test_pictures_are_jpegs_of_the_training_images_and_of_each_labels_mistakes(finished):
    accumulator = read(finished)
    kinds = {f"false_{kind}/{label}" for kind in ("positives", "negatives") for label in ("dog", "tree")}
    assert set(accumulator.Tags()["images"]) == kinds | {"augmented/first_batch"}
    (shown,) = accumulator.Images("augmented/first_batch")
    opened = Image.open(io.BytesIO(shown.encoded_image_string))
    assert (opened.format, opened.size) == ("JPEG", (shown.width, shown.height))


def test_an_epoch_takes_few_bytes(run):
    tracker = Tracker(run, 0, SETTINGS)
    sizes = []
    for number in range(1, 4):
        epoch(tracker, number)
        tracker._events.flush()
        sizes.append(sum(path.stat().st_size for path in run.path.glob("events*")))
    tracker.close()
    assert sizes[2] - sizes[1] < 4000


def test_a_resume_goes_on_with_one_curve(run):
    tracker = Tracker(run, 0, SETTINGS)
    for number in (1, 2):
        epoch(tracker, number)
    tracker.close()
    tracker = Tracker(run, 10, SETTINGS)
    for number in (2, 3):
        epoch(tracker, number)
    tracker.close()
    assert [point.step for point in read(run).Scalars("train/loss")] == [10, 20, 30]
    assert [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3]
