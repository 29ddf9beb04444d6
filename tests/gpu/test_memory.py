"""Memory that runs out: what is given up, in which order, and that the result is the one there would have been."""

import numpy as np
import pytest
import torch

from jobs.local.gpus import PER_GPU
from jobs.stages import TrainGroupTask
from pipeline.data import pixel_cache as cache_module
from pipeline.data.augment import Augmentation
from pipeline.data.pixel_cache import PROCESSES_PER_GPU, fits_on_gpu, pixel_cache
from pipeline.errors import TrainingError
from pipeline.training import loop, memory
from pipeline.training.learner import Learner
from pipeline.training.loop import train
from pipeline.training.stop_signal import StopFlag
from tests.cells import run_here
from tests.local import test_train_groups as groups
from tests.local.test_train_groups import SHARED, assert_equal, planned, results

alone = groups.alone  # a fixture


@pytest.fixture(autouse=True)
def memory_can_run_out(monkeypatch):
    monkeypatch.setattr(memory, "_has_limit", lambda learner: True)


FULL = torch.OutOfMemoryError("CUDA out of memory.")


def failing(function, *, calls):
    """It runs, and then finds no memory, in these of its calls (from 1): all that it has changed stays changed."""
    made = []

    def fails(*arguments, **named):
        made.append(1)
        found = function(*arguments, **named)
        if len(made) in calls:
            raise FULL
        return found

    return fails


@pytest.fixture
def undisturbed(learner):
    one = learner()
    train([one], StopFlag())
    return {name: value.clone() for name, value in one.net.state_dict().items()}


def begin_anew(one):
    for path in one.run.path.glob("*.pt"):
        path.unlink()


@pytest.fixture
def anew(learner, undisturbed):
    """The same cell again, from the start, and a check that it became the same."""

    def make():
        one = learner()
        begin_anew(one)
        return learner()

    def check(one):
        assert one.attempt.error is None
        assert one.attempt.is_done
        for name, value in one.net.state_dict().items():
            assert torch.equal(value, undisturbed[name]), name

    make.same = check
    return make


def test_a_step_that_is_tried_again_counts_in_batch_norm_once(anew, monkeypatch, capsys):
    one = anew()
    monkeypatch.setattr(one, "loss", failing(one.loss, calls={1, 5}))
    train([one], StopFlag())
    anew.same(one)
    said = capsys.readouterr().out
    assert "out of GPU memory at step 1: trying once more" in said
    assert "out of GPU memory at step 4: trying once more" in said
    assert "at a time" not in said


def test_resident_pixels_go_first(anew, monkeypatch, capsys):
    one = anew()
    packed = one.data.packed
    pixels = pixel_cache(packed, "cpu")
    pixels.resident = torch.from_numpy(packed.gather(np.arange(len(packed))))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(one, "loss", failing(one.loss, calls={3}))
    train([one], StopFlag())
    assert pixels.resident is None
    assert pixel_cache(packed, "cpu") is pixels  # and do not come back
    anew.same(one)
    assert "pixels and features are copied batch by batch from now on" in capsys.readouterr().out


def test_a_batch_that_finds_no_room_is_made_again(anew, monkeypatch):
    one = anew()
    monkeypatch.setattr(Augmentation, "__call__", failing(Augmentation.__call__, calls={3}))
    train([one], StopFlag())
    anew.same(one)


def test_a_batch_that_never_finds_room_is_an_error(learner, monkeypatch):
    one = learner()
    monkeypatch.setattr(Augmentation, "__call__", failing(Augmentation.__call__, calls=range(99)))
    train([one], StopFlag())
    assert isinstance(one.attempt.error, torch.OutOfMemoryError)
    assert "out of GPU memory; try a smaller" in one.run.why_not_done(one.identity)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_a_first_update_that_broke_off_is_undone_and_made_again(learner, monkeypatch, optimizer):
    settings = {"optimizer": {"name": optimizer}, "epochs": 1, "clip_grad_norm": 1.0}
    one = learner(**settings)
    train([one], StopFlag())
    begin_anew(one)
    again = learner(**settings)
    monkeypatch.setattr(again.optimizer, "step", failing(again.optimizer.step, calls={1}))
    train([again], StopFlag())
    assert again.attempt.is_done
    for name, value in again.net.state_dict().items():
        assert torch.equal(value, one.net.state_dict()[name]), name


def test_a_first_update_of_what_was_frozen_is_undone_too(learner, monkeypatch):
    settings = {"model": {"name": "mobilenet_v3_small"}, "freeze_backbone_epochs": 1, "epochs": 2}
    one = learner(**settings)
    train([one], StopFlag())
    begin_anew(one)
    again = learner(**settings)
    first = 1 + again.stream.steps_per_epoch
    monkeypatch.setattr(again.optimizer, "step", failing(again.optimizer.step, calls={first}))
    train([again], StopFlag())
    assert again.attempt.is_done
    for name, value in again.net.state_dict().items():
        assert torch.equal(value, one.net.state_dict()[name]), name


@pytest.mark.parametrize("model", ["cnn3", "vit_b_16"])
@pytest.mark.parametrize("images", [2, 3, 5, 7])
def test_batch_norm_is_never_given_a_single_image(learner, monkeypatch, model, images):
    one = learner(model={"name": model})
    object.__setattr__(one.execution, "micro_batch", 2)
    sizes, forward = [], one.net.forward
    monkeypatch.setattr(one.net, "forward", lambda inputs: (sizes.append(len(inputs)), forward(inputs))[1])
    loop.backward(one, torch.randn(images, 3, 32, 32), torch.zeros(images, 14))
    assert sum(sizes) == images
    assert max(sizes) <= 3
    assert model == "vit_b_16" or min(sizes) >= 2


def test_one_that_is_ahead_and_waits_makes_room_before_the_one_that_runs(learner):
    ahead, runs, beside = learner(), learner(), learner()
    assert loop._in_memory([runs, beside], [ahead, runs, beside])[-1] is ahead


@pytest.mark.parametrize("calls", [{4}, {1, 2}])
def test_an_update_that_cannot_be_made_again_is_told(learner, monkeypatch, calls):
    one = learner()
    monkeypatch.setattr(one.optimizer, "step", failing(one.optimizer.step, calls=calls))
    train([one], StopFlag())
    assert isinstance(one.attempt.error, TrainingError)
    assert "out of GPU memory while the weights were changed" in str(one.attempt.error)


@pytest.mark.slow
@SHARED
@pytest.mark.parametrize("where", ["step", "update", "start"])
@pytest.mark.parametrize("room", [1, 2])
def test_of_cells_that_do_not_fit_together_the_last_wait(
    tmp_path,
    drawn_zip,
    alone,
    monkeypatch,
    capsys,
    where,
    room,
):
    made, begin, back = [], Learner.__init__, loop.backward

    def is_full():
        here = [one for one in made if not one.postponed and not one.attempt.is_done]
        return len(here) > (room if where != "start" else room - 1)

    def begins(self, *arguments, **named):
        if where == "start" and is_full():
            raise FULL
        begin(self, *arguments, **named)
        made.append(self)
        if where == "update":
            step = self.optimizer.step
            self.optimizer.step = lambda: exec_or_full(step)

    def exec_or_full(step):
        step()
        if is_full():
            raise FULL

    def backward(*arguments):
        return None if where == "step" and is_full() else back(*arguments)

    monkeypatch.setattr(Learner, "__init__", begins)
    monkeypatch.setattr(loop, "backward", backward)
    plan, tasks = planned(tmp_path, drawn_zip)
    assert run_here(TrainGroupTask(tuple(tasks))) == 0
    assert len(made) > 3 or where == "start"  # some were built twice
    assert_equal(results(plan), alone)
    logs = "".join(cell.run.log.read_text() for cell in plan.cells)
    assert "out of GPU memory beside the other cells" in logs


def test_processes_of_one_gpu_share_what_pixels_may_take(monkeypatch):
    assert PROCESSES_PER_GPU == PER_GPU  # what starts them, and what reads it
    left = [80 << 30]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (left[0], 80 << 30))
    assert fits_on_gpu(18 << 30)
    monkeypatch.setenv(PROCESSES_PER_GPU, "4")
    assert not fits_on_gpu(18 << 30)
    for _ in range(4):  # one after another, each sees what the others left
        size = int(cache_module._GPU_SHARE * left[0] / 4)
        assert fits_on_gpu(size)
        left[0] -= size
    assert (80 << 30) - left[0] <= 20 << 30
