"""One continuous curve over any number of starts, in `metrics.jsonl` and for every way of reading TensorBoard."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import RunDir
from pipeline.tracking.tracker import Tracker

KILLED_AT = [(7, 4), (12, 10), (12, 12), (15, 0)]  # logged up to, saved at


def newest(folder):
    """The one event file that is not empty."""
    (file,) = (path for path in folder.glob("events.out.tfevents.*") if path.stat().st_size)
    return file


@pytest.fixture
def killed_often(tmp_path, monkeypatch):
    """A cell whose process died several times after logging beyond its last save."""
    run, saved = RunDir(tmp_path), 0
    live = EventAccumulator(str(tmp_path))
    for attempt, (until, save) in enumerate(KILLED_AT):
        start = 1e9 + 60 * attempt  # event files are named by the second they were begun in
        monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time.time", lambda at=start: at)
        tracker = Tracker(run, saved, {})
        for step in range(saved + 1, until + 1):
            tracker.log(step, 1, {"train/loss": step + attempt / 8, "train/lr": 0.5})
        tracker._events.flush()
        tracker.close()
        file = newest(tmp_path)
        with file.open("r+b") as half:  # its last record was cut in two
            half.truncate(file.stat().st_size - 5)
        live.Reload()
        saved = save
    monkeypatch.undo()
    tracker = Tracker(run, saved, {})
    for step in range(1, 21):
        tracker.log(step, 1, {"train/loss": float(step), "train/lr": 0.5})
    tracker.close()
    return run, live


def test_every_reader_sees_each_step_once(killed_often):
    run, live = killed_often
    assert [(row["step"], row["train/loss"]) for row in read_jsonl(run.metrics)] == [
        (step, float(step)) for step in range(1, 21)
    ]
    file = newest(run.path)
    raw = [
        (event.step, value.simple_value)
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == "train/loss"
    ]
    assert raw == [(step, float(step)) for step in range(1, 21)]
    late = EventAccumulator(str(run.path))
    for reader in (late, live):  # opened now, and one that was looking on all the time
        reader.Reload()
        assert [(e.step, e.value) for e in reader.Scalars("train/loss")] == raw


def test_what_was_logged_before_keeps_its_time(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    first = Tracker(run, 0, {})
    monkeypatch.setattr("pipeline.tracking.tracker.time.time", lambda: 1000.0)
    first.log(1, 1, {"train/loss": 1.0})
    first.close()
    monkeypatch.undo()
    Tracker(run, 1, {}).close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.wall_time for event in events.Scalars("train/loss")] == [1000.0]
