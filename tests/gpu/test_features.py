"""Making features is work like any other: it says how far it is, stops at the batch in hand, and goes on behind it."""

import fcntl
import re
import signal
import threading

import numpy as np
import pytest
import torch

from jobs.stages import EXIT_STOPPED
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import drop_resident
from pipeline.models import features, kept_features
from pipeline.models.build import build_model
from pipeline.models.device import ExecutionConfig
from pipeline.models.features import FrozenNetwork
from pipeline.models.kept_features import Parts, Stopped
from pipeline.spec import ModelSpec, TrainSpec
from pipeline.training.feeds import build_feed
from pipeline.training.loop import train
from pipeline.training.stop_signal import StopFlag
from tests.cells import finish, one_cell, packed_project, paused, start

MODEL = ModelSpec(name="mobilenet_v3_small", weights="net.pth", trainable="head")
ROWS = np.arange(40)


@pytest.fixture
def frozen(drawn, tmp_path, monkeypatch):
    """A maker of frozen networks with features of eight pictures at a time, and what it has computed."""
    monkeypatch.setattr(features, "FEATURE_BATCH", 8)
    packed = PackedSet.open(drawn[1])
    torch.manual_seed(0)
    net = build_model(MODEL, 14, 32)
    spec = TrainSpec(
        model=MODEL,
        image_px=32,
        cached_views=2,
        precision="fp32",
        augment={"crop": (0.5, 1), "trivial_augment": True},
    )

    def make(folder="features", stop_after=None):
        asked = []

        def stopped():
            asked.append(1)
            return stop_after is not None and len(asked) >= stop_after

        execution = ExecutionConfig.choose("cpu", "fp32", 1)
        one = FrozenNetwork(net, spec, packed, execution, folder=tmp_path / folder, stopped=stopped)
        one.batches = []
        forward = one._net.forward
        one._net.forward = lambda inputs: (one.batches.append(len(inputs)), forward(inputs))[1]
        monkeypatch.setattr(features, "fuse_conv_bn", lambda net: net.eval())  # or the count would be lost
        return one

    return make


@pytest.mark.parametrize("view", [None, 1])
def test_stopped_work_is_kept_and_gone_on_with(frozen, tmp_path, view, capsys):
    whole = frozen("whole")._cached(ROWS, view)
    first = frozen(stop_after=2)
    with pytest.raises(Stopped):
        first._cached(ROWS, view)
    assert sum(first.batches) == 16  # none after the batch in hand
    assert len([*(tmp_path / "features").glob(".*.parts/*.npz")]) == 1
    second = frozen()
    assert torch.equal(second._cached(ROWS, view), whole)
    assert sum(second.batches) == 40 - 16
    assert "going on behind the 16 pictures that are done" in capsys.readouterr().out
    assert not [*(tmp_path / "features").glob(".*.parts")]  # the whole is kept now
    third = frozen()
    assert torch.equal(third._cached(ROWS, view), whole)
    assert third.batches == []


def test_a_killed_process_loses_the_part_in_hand_and_a_damaged_part_what_follows(
    frozen, tmp_path, monkeypatch
):
    monkeypatch.setattr(kept_features, "PART_S", 0)  # each batch is one
    whole = frozen("whole")._cached(ROWS, 0)
    one = frozen()
    write = Parts.write

    def killed(self, start, found):
        write(self, start, found)
        if start == 24:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        one._cached(ROWS, 0)
    monkeypatch.setattr(Parts, "write", write)
    parts = sorted((tmp_path / "features").glob(".*.parts/*.npz"))
    assert [part.stem for part in parts] == ["000000000", "000000008", "000000016", "000000024"]
    parts[2].write_bytes(parts[2].read_bytes()[:-50])
    again = frozen()
    assert torch.equal(again._cached(ROWS, 0), whole)
    assert sum(again.batches) == 40 - 16


def test_where_parts_cannot_be_kept_the_work_goes_on(frozen, monkeypatch, capsys):
    monkeypatch.setattr(kept_features, "PART_S", 0)
    whole = frozen("whole")._cached(ROWS, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_features, "atomic_write", full)
    assert torch.equal(frozen()._cached(ROWS, 0), whole)
    assert (
        capsys.readouterr().out.count("cannot be kept (No space left on device)") == 2
    )  # parts, and the whole


def test_one_that_waits_for_another_process_stops_too(frozen, tmp_path):
    frozen()._cached(ROWS, None)
    (lock,) = (tmp_path / "features").glob(".*.lock")
    (whole,) = (tmp_path / "features").glob("*.npz")
    whole.unlink()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Stopped):
            frozen(stop_after=2)._cached(ROWS, None)
        done = threading.Event()
        waiting = threading.Thread(target=lambda: (frozen()._cached(ROWS, None), done.set()))
        waiting.start()
        assert not done.wait(0.5)
        fcntl.flock(file, fcntl.LOCK_UN)
        assert done.wait(30)
        waiting.join()


def test_it_says_how_far_it_is(frozen, monkeypatch, capsys, told):
    monkeypatch.setattr(kept_features, "SAY_S", 0)
    frozen()._cached(ROWS, 1)
    said = capsys.readouterr().out
    line = re.compile(r"^features (\d+)/40 of view 1, \d+ images/s, \d:\d\d:\d\d left$", re.M)
    assert line.findall(said) == ["8", "16", "24", "32"]
    assert "features of 40 pictures, view 1" in said
    # and the one who listens is told each time
    assert [(state.doing, state.done, state.total) for state in told] == [
        ("features of view 1, image", done, 40) for done in (8, 16, 24, 32, 40)
    ]


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net.pth"
    torch.save(build_model(ModelSpec(name="mobilenet_v3_small"), 14, 32).state_dict(), path)
    return path


@pytest.mark.parametrize(("free", "reads"), [(1 << 40, 3), (0, 7)])
def test_views_are_read_once_where_they_fit(learner, weights, monkeypatch, free, reads):
    model = MODEL.model_dump() | {"weights": str(weights)}
    settings = {"model": model, "cached_views": 2, "epochs": 6, "weights": weights}
    one = learner(**settings)
    train([one], StopFlag())  # makes them
    for path in one.run.path.glob("*.pt"):
        path.unlink()
    read, made = kept_features.read_features, []
    monkeypatch.setattr(features, "read_features", lambda path: (made.append(path), read(path))[1])
    monkeypatch.setattr("pipeline.training.feeds.memory_available", lambda: free)
    one = learner(**settings)
    train([one], StopFlag())
    assert one.attempt.is_done
    assert len(made) == reads  # validation, and each view once; or a view an epoch


def test_features_leave_a_gpu_that_has_no_room(learner, weights, monkeypatch):
    """Two views on a device that stands in for a GPU."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        "pipeline.training.feeds.fits_on_gpu", lambda size, held=0: (asked.append(held), True)[1]
    )
    model, asked = MODEL.model_dump() | {"weights": str(weights)}, []
    one = learner(model=model, cached_views=2, epochs=1, weights=weights)
    feed = build_feed(one)
    feed._may_be_resident = True
    assert drop_resident() is False  # all of them are on the CPU
    assert feed._may_be_resident is False  # and none goes to the GPU again
    feed._view(0)
    assert asked == []


@pytest.mark.slow
def test_a_signal_ends_a_process_that_makes_features(tmp_path, drawn_zip, weights):
    torch.save(build_model(ModelSpec(name="resnet18"), 14, 32).state_dict(), weights)
    model = {"name": "resnet18", "weights": str(weights), "trainable": "head"}
    spec = packed_project(
        tmp_path,
        drawn_zip,
        image_px=96,
        model=model,
        cached_views=1,
        augment={"hflip": 0.5},
        precision="fp32",
    )
    cell = one_cell(spec, "run.threads=1")
    process, folder = start(cell), cell.data.packed / "features"
    with paused(cell.run.path.parent, when=lambda _: [*folder.glob(".*.lock")]):  # they have begun
        process.send_signal(signal.SIGTERM)
    assert finish(process) == EXIT_STOPPED
    assert "What is made of its features is kept; run the same command" in cell.run.log.read_text()
    assert cell.run.manifest_state(cell.identity) == "started"
    assert [*folder.glob(".*.parts/*.npz")]
