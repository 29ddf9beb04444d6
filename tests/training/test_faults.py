"""Faults in training: memory, loader, disk. Each is told in words, and nothing that was good is lost."""

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from jobs.stages import EXIT_FAILED, EXIT_STOPPED, encode
from pipeline.data.loading import spans_in_order
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import PixelCache
from pipeline.data.splits import read_split
from pipeline.errors import DataError, TrainingError
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.scoring import Scorer, compute_scores
from pipeline.spec import IMAGENET, RunSpec
from pipeline.training.attempt import Attempt
from pipeline.training.checkpointing import Checkpointer
from pipeline.training.learner import CellData, Learner
from pipeline.training.loop import backward, train
from pipeline.training.stop_signal import StopFlag
from tests.cells import PATIENCE_S, clean_environment, one_cell, packed_project, project, train_task
from tests.cells import train as train_cell
from tests.training.test_training import OFTEN, stopped


@pytest.fixture
def learner(tmp_path, drawn_zip, drawn):
    """A maker of learners, in this process, on the drawn set."""

    made = []

    def make(name="x", **train):
        _, folder, split_file = drawn
        spec = project(tmp_path, drawn_zip, name=name, precision="fp32", **train)
        cell = one_cell(spec, "run.threads=1")
        split = read_split(split_file)
        data = CellData(packed=PackedSet.open(folder), train=split.train, validation=split.validation)
        made.append(Learner(cell.cell.spec, Attempt(cell.run, cell.identity), data, weights=None))
        return made[-1]

    yield make
    for each in made:
        each.tracker.close()


def out_of_memory_above(learner, images, monkeypatch):
    """The one fake: a CPU has no CUDA memory to run out of."""
    forward = learner.net.forward

    def limited(inputs_BCHW):
        if len(inputs_BCHW) > images and learner.net.training:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(inputs_BCHW)

    monkeypatch.setattr(learner.net, "forward", limited)


def test_out_of_memory_halves_the_micro_batch_says_so_and_remembers_it(learner, monkeypatch, capsys):
    one = learner(epochs=2)
    out_of_memory_above(one, 5, monkeypatch)
    train([one], StopFlag())
    assert one.attempt.is_done
    said = capsys.readouterr().out
    assert "out of GPU memory at step 1: 8 images at a time from now on" in said
    assert "out of GPU memory at step 1: 4 images at a time from now on" in said
    assert "train.batch_size 16 stays" in said
    assert said.count("out of GPU memory") == 3  # once it was only tried again
    state = load_checkpoint(one.run.checkpoint_last)
    assert state["execution"]["micro_batch"] == 4
    assert state["step"] == 2 * 12  # as many steps as with whole batches
    assert learner(epochs=2).execution.micro_batch is None  # the next start may find more room


def test_out_of_memory_in_scoring_halves_its_batch_and_changes_no_score(learner, monkeypatch):
    one = learner()
    scorer, rows = Scorer(one.net, 32, one.execution, IMAGENET), one.data.validation
    monkeypatch.setattr(
        "pipeline.models.scoring.fuse_conv_bn", nn.Module.eval
    )  # or the limit below would be lost
    monkeypatch.setattr("pipeline.models.slices.PICTURES_PER_THREAD", 64)  # a GPU takes a batch whole
    (whole,) = compute_scores([scorer], one.data.packed, rows)
    sizes, forward = [], one.net.forward

    def limited(inputs_BCHW):
        sizes.append(len(inputs_BCHW))
        if len(inputs_BCHW) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(inputs_BCHW)

    monkeypatch.setattr(one.net, "forward", limited)
    (found,) = compute_scores([scorer], one.data.packed, rows, batch_size=16)
    assert sizes[:3] == [min(16, len(rows)), 8, 4]
    assert set(sizes[2:-1]) == {4}
    np.testing.assert_allclose(found.logits_NK, whole.logits_NK, rtol=1e-5, atol=1e-6)
    assert found.ids == whole.ids


def test_out_of_memory_with_as_few_images_as_batch_norm_takes_is_an_error(learner, monkeypatch):
    one = learner()
    out_of_memory_above(one, 0, monkeypatch)
    train([one], StopFlag())
    assert isinstance(one.attempt.error, TrainingError)
    assert "out of GPU memory with 2 images at a time; use a smaller" in str(one.attempt.error)


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 15])
def test_gradients_of_micro_batches_are_those_of_the_batch(learner, micro_batch):
    one = learner()
    one.net.eval()  # batch norm of one image is another matter
    inputs = torch.randn(16, 3, 32, 32)
    targets = (torch.rand(16, 14) < 0.2).float()
    whole_loss = backward(one, inputs, targets)
    whole = [parameter.grad.clone() for parameter in one.net.parameters()]
    object.__setattr__(one.execution, "micro_batch", micro_batch)
    torch.testing.assert_close(backward(one, inputs, targets), whole_loss)
    for parameter, expected in zip(one.net.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


# ---------------------------------------------------------------- the loader


def test_a_loader_that_hangs_is_told_from_one_that_is_slow(drawn, monkeypatch):
    packed = PackedSet.open(drawn[1])
    released = threading.Event()
    monkeypatch.setattr("pipeline.data.loading._HUNG_S", 0.3)
    monkeypatch.setattr(PackedSet, "gather", lambda *_: released.wait(30))
    with pytest.raises(DataError, match=r"drawn-32px-\w+: no batch arrived in 0.3 s; the file system hangs"):
        next(PixelCache(packed, "cpu").batches(np.arange(20), spans_in_order(20, 8)))
    released.set()


def test_a_loader_that_crashes_raises_where_the_batch_is_awaited(drawn, monkeypatch):
    packed = PackedSet.open(drawn[1])
    reads = []

    def gather(self, rows):
        reads.append(rows)
        if len(reads) == 2:
            raise MemoryError("no room for a batch")
        return np.zeros((len(rows), 32, 32, 3), np.uint8)

    monkeypatch.setattr(PackedSet, "gather", gather)
    batches = PixelCache(packed, "cpu").batches(np.arange(20), spans_in_order(20, 8))
    next(batches)
    with pytest.raises(MemoryError, match="no room for a batch"):
        next(batches)


def test_pixels_that_vanish_are_named(drawn, tmp_path):
    folder = tmp_path / "scratch"
    shutil.copytree(drawn[1], folder)
    packed = PackedSet.open(folder)
    shutil.rmtree(folder)
    with pytest.raises(
        DataError, match=r"scratch/images-000.npy: cannot be read: No such file .* check its disk"
    ):
        packed.gather([0])
    folder.mkdir()
    (folder / "images-000.npy").write_bytes(bytes(500))
    with pytest.raises(DataError, match=r"images-000.npy: ends early"):
        PackedSet.gather(packed, [200])


# ---------------------------------------------------------------- the disk

_ON_SMALL_DISK = """
import shutil, subprocess, sys
from pathlib import Path
run, kept, task, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
inside = {item.name: item.read_bytes() for item in run.iterdir() if item.is_file()}
room = 200_000 if options == "full" else 50_000_000
size = f"size={sum(-(-len(body) // 4096) * 4096 for body in inside.values()) + room}"
subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(run)], check=True)
for name, body in inside.items():
    (run / name).write_bytes(body)
if options == "read-only":
    subprocess.run(["mount", "-o", "remount,ro", str(run)], check=True)
child = subprocess.Popen([sys.executable, "-m", "jobs.stages"], stdin=subprocess.PIPE)
child.stdin.write(task.encode())
child.stdin.flush()
print("status", child.wait())
shutil.copytree(run, kept)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-mr", "true"], capture_output=True).returncode != 0,
    reason="this system allows no mount of a small disk",
)
@pytest.mark.parametrize(
    ("disk", "error"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
@pytest.mark.slow
def test_a_full_or_read_only_disk_loses_nothing_that_was_saved(tmp_path, drawn_zip, disk, error):
    straight = one_cell(packed_project(tmp_path / "a", drawn_zip, epochs=3), "run.threads=1")
    assert train_cell(straight) == 0
    cell = one_cell(packed_project(tmp_path / "b", drawn_zip, epochs=3), "run.threads=1", *OFTEN)
    assert stopped(cell, 1, signal.SIGTERM) == EXIT_STOPPED
    saved = load_checkpoint(cell.run.checkpoint_last)["step"]
    (tmp_path / "run.py").write_text(_ON_SMALL_DISK)
    done = subprocess.run(
        [
            "unshare",
            "-mr",
            sys.executable,
            "run.py",
            str(cell.run.path),
            "kept",
            encode(train_task(cell)),
            disk,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"},
        timeout=PATIENCE_S,
    )
    said = done.stdout + done.stderr
    assert f"status {EXIT_FAILED}" in said
    assert f": {error} (" in said
    assert "GB free" in said
    assert "Traceback" not in said
    shutil.rmtree(cell.run.path)
    shutil.copytree(tmp_path / "kept", cell.run.path)  # as it was left; and now there is room
    assert load_checkpoint(cell.run.checkpoint_last)["step"] >= saved
    assert train_cell(cell) == 0, cell.run.log.read_text()
    assert cell.run.scores_val.read_bytes() == straight.run.scores_val.read_bytes()


def test_a_save_waits_until_it_is_a_small_share_of_the_time(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("pipeline.training.checkpointing.time.monotonic", lambda: clock[0])

    class Slow:  # a save that takes 3 s, on a clock that can be moved
        attempt = SimpleNamespace(isolated=contextlib.nullcontext)

        def save(self):
            clock[0] += 3

    saving = Checkpointer(RunSpec(save_every_min=1, save_fraction=0.02))
    assert saving.affordable  # nothing is known of its cost yet
    saving.save([Slow()])
    clock[0] += 149  # the save is 3 of 152 s by now: still more than 2 %
    assert not saving.affordable
    assert not saving.due
    clock[0] += 1
    assert saving.affordable
    assert saving.due
