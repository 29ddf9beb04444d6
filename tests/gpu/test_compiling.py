"""Compiled networks train like others, and resume to the same bits."""

import shutil

import numpy as np
import pytest
import torch

from pipeline.errors import TrainingError
from pipeline.models.checkpoint import load_checkpoint
from pipeline.storage.jsonl import read_jsonl
from pipeline.training.compiling import compiled
from pipeline.training.dynamo_stub import install_dynamo_stub
from pipeline.training.learner import Learner
from pipeline.training.loop import train
from pipeline.training.stop_signal import StopFlag


def losses(one):
    return [row["train/loss"] for row in read_jsonl(one.run.metrics) if "train/loss" in row]


def last_weights(one):
    """Of the last epoch; a learner that is done may hold those of the best one."""
    return load_checkpoint(one.run.checkpoint_last)["model"]


SGD = {"name": "sgd", "lr": 0.05}  # Adam makes a step as large of a gradient that is rounding alone


NETWORKS = {
    "cnn3": {},
    "timm's transformer": {"model": {"name": "timm/test_vit"}, "image_px": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_compiled_cell_resumes_to_the_same_bits_and_learns_as_one_that_is_not(
    learner, tmp_path, monkeypatch, network
):
    settings = {"epochs": 2, "optimizer": SGD, **NETWORKS[network]}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    install_dynamo_stub()  # as in a training process; it must give way
    asked = ("run.compile=true", "run.save_every_min=1e-9", "run.save_fraction=1000")
    plain = learner(**settings)
    train([plain], StopFlag())
    expected = losses(plain)
    for path in plain.run.path.glob("*.pt"):
        path.unlink()
    whole = learner(*asked, **settings)
    assert whole.execution.compiled
    train([whole], StopFlag())
    assert whole.attempt.is_done
    np.testing.assert_allclose(losses(whole), expected, rtol=5e-3)  # other sums, and from step to step more

    undisturbed = last_weights(whole)
    for path in whole.run.path.glob("*.pt"):
        path.unlink()
    stopped, stop = learner(*asked, **settings), StopFlag()
    record = Learner.record_step

    def stops(self, loss, images):
        record(self, loss, images)
        if self.step == 17:  # in the middle of the second epoch
            stop.reason = "SIGTERM"

    monkeypatch.setattr(Learner, "record_step", stops)
    train([stopped], stop)
    assert load_checkpoint(stopped.run.checkpoint_last)["step"] == 17
    torch._dynamo.reset()  # as another process
    resumed = learner(*asked, **settings)
    assert resumed.execution.compiled
    train([resumed], StopFlag())
    assert resumed.attempt.is_done
    found = last_weights(resumed)
    for name, value in undisturbed.items():
        assert torch.equal(value, found[name]), name


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TrainingError, match=r"needs a compiler.*run.compile=false"):
        compiled(torch.nn.Linear(2, 2))
