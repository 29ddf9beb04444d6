"""Cells with the user's own code: trained from the frozen copy, resumed with the same bits; where they fail."""

import pytest
import torch

from jobs.planning.earlier import longer
from jobs.planning.plan import make_plan
from jobs.stages import EXIT_FAILED, EXIT_STOPPED
from pipeline.models.checkpoint import load_checkpoint
from pipeline.spec.reading import read_spec
from tests.cells import one_cell, packed_project, run_here, train, train_task
from tests.own import lab

EVERY_STEP = ("run.save_every_min=1e-9", "run.save_fraction=1e9")


@pytest.fixture
def cell_of(tmp_path, drawn_zip):
    """cell_of(settings, changed files): the only cell of a project with a package of its own."""

    def make(settings, name="a", changed=(), overrides=()):
        spec = packed_project(
            tmp_path / name, drawn_zip, **{"epochs": 1, "model": {"name": "cnn2"}, **settings}
        )
        lab.write(tmp_path / name, **dict(changed))
        return one_cell(spec, *overrides)

    return make


def weights(cell):
    return load_checkpoint(cell.run.checkpoint_last)["model"]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_loss_of_ones_own_trains_as_the_same_loss_of_ours(cell_of):
    sgd = {"optimizer": {"name": "sgd", "lr": 0.01}}  # Adam makes whole steps of rounding noise
    ours, own = cell_of({"loss": {"name": "bce"}, **sgd}), cell_of({"loss": lab.LOSS, **sgd}, "b")
    assert train(ours) == train(own) == 0
    torch.testing.assert_close(
        weights(ours), weights(own), rtol=1e-4, atol=1e-5
    )  # means are rounded otherwise
    assert own.run.own_code.name in own.run.read_manifest()["files"]
    assert not ours.run.own_code.exists()


def test_after_an_edit_of_the_code_alone_the_plan_says_why_cells_are_new(cell_of, tmp_path):
    cell = cell_of({"loss": lab.LOSS})
    assert train(cell) == 0
    lab.write(tmp_path / "a", losses=f"{lab.LOSSES}# edited\n")
    (said,) = longer(make_plan(read_spec(tmp_path / "a" / "experiments" / "x.yaml")))
    assert f"{cell.run.name} is of other code in mylab, so this is another cell and starts anew" in said


def test_options_reach_the_loss(cell_of):
    plain = cell_of({"loss": lab.LOSS})
    half = cell_of({"loss": {**lab.LOSS, "options": {"factor": 0.5}}}, "b")
    assert train(plain) == train(half) == 0
    losses = [load_checkpoint(cell.run.checkpoint_last)["best"]["loss"] for cell in (plain, half)]
    assert losses[1] == pytest.approx(losses[0] / 2, rel=0.1)


def test_what_is_queued_runs_the_frozen_copy_though_the_file_has_changed(cell_of, tmp_path):
    undisturbed, queued = cell_of({"loss": lab.LOSS}), cell_of({"loss": lab.LOSS}, "b")
    task = train_task(queued)
    (tmp_path / "b" / "mylab" / "losses.py").write_text("raise RuntimeError('edited while it waited')\n")
    assert train(undisturbed) == run_here(task, queued.run.log) == 0
    assert same(weights(undisturbed), weights(queued))
    task.code.unlink()
    queued.run.checkpoint_last.unlink()
    assert run_here(task, queued.run.log) == 0  # its own copy


def test_augmentation_of_ones_own_is_drawn_again_alike_after_a_stop(cell_of, monkeypatch):
    settings = {"augment": {"own": lab.AUGMENT["own"], "mixup": 0.2}, "epochs": 2}
    whole, stopped = (cell_of(settings, name, overrides=EVERY_STEP) for name in "ab")
    plain = cell_of({"augment": {"mixup": 0.2}, "epochs": 2}, "c")
    assert train(whole) == train(plain) == 0
    assert not same(weights(whole), weights(plain))
    stop_after(monkeypatch, 5)
    assert train(stopped) == EXIT_STOPPED
    assert load_checkpoint(stopped.run.checkpoint_last)["step"] == 5
    monkeypatch.undo()
    assert train(stopped) == 0
    assert same(weights(whole), weights(stopped))


def stop_after(monkeypatch, steps):
    """The process is asked to stop once so many steps are done."""
    from pipeline.training.learner import Learner
    from pipeline.training.stop_signal import StopFlag

    done = []
    record = Learner.record_step

    def recorded(self, *arguments):
        record(self, *arguments)
        done.append(self.step)

    monkeypatch.setattr(Learner, "record_step", recorded)
    monkeypatch.setattr(StopFlag, "__bool__", lambda _: bool(done) and done[-1] >= steps)


LOSS_OF = "def bce(logits, targets):\n    return "
NOISE_OF = "def noise(images, generator):\n    return "
# settings, files that differ -> the error of the cell
WRONG = [
    (
        {"loss": lab.LOSS},
        {"losses": f"{LOSS_OF}1 / 0\n"},
        "your own code: mylab/losses.py:2 (in bce): ZeroDivisionError: ",
    ),
    (
        {"loss": lab.LOSS},
        {"losses": f"{LOSS_OF}logits - targets\n"},
        "train.loss: mylab.losses:bce returned torch.float32 (16, 14); it must return one number as a tensor",
    ),
    (
        {"loss": lab.LOSS},
        {"losses": f"{LOSS_OF}0.5\n"},
        "train.loss: mylab.losses:bce returned float; it must",
    ),
    (
        {"loss": lab.LOSS},
        {"losses": f"import nowhere\n{LOSS_OF}0.5\n"},
        "train.loss: mylab/losses.py:1: ModuleNotFoundError: No module named 'nowhere' (it is neither installed nor in",
    ),
    (
        {"loss": lab.LOSS},
        {"losses": "from nowhere import *\nbce = 3\n"},
        "train.loss: mylab/losses.py:1: ModuleNotFoundError",
    ),
    (
        {"loss": {**lab.LOSS, "options": {"factor": 2}}},
        {"losses": "from functools import cache\n@cache\ndef bce(logits, targets):\n    pass\n"},
        "train.loss: mylab.losses:bce(logits, targets) cannot be called: got an unexpected keyword argument 'factor'",
    ),
    (
        {"loss": lab.LOSS},
        {"losses": f"{LOSS_OF}1\ndef late():\n    from mylab import nets\n"},
        "train.loss: mylab/losses.py:4: imports mylab inside a function; import it at the top of the file",
    ),
    (
        {"augment": lab.AUGMENT},
        {"changes": f"{NOISE_OF}images[:, :1]\n"},
        "train.augment.own: mylab.changes:noise returned float32 (16, 1, 32, 32) on cpu; it must return what it is "
        "given, float32 (16, 3, 32, 32) on cpu",
    ),
    (
        {"augment": lab.AUGMENT},
        {"changes": f"{NOISE_OF}images + generator\n"},
        "your own code: mylab/changes.py:2 (in noise): TypeError: ",
    ),
]


@pytest.mark.parametrize(("settings", "changed", "said"), WRONG)
def test_what_fails_is_said_in_one_sentence_with_its_place(cell_of, settings, changed, said):
    cell = cell_of(settings, changed=changed)
    assert train(cell) == EXIT_FAILED
    error = cell.run.read_manifest()["error"]
    assert error.startswith(said)
    assert f"error: {error}" in cell.run.log.read_text()
