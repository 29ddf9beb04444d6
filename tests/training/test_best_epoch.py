"""The best epoch: ties, epochs that cannot tell, and how long training waits."""

import json

import numpy as np
from torch import nn

from pipeline.models.scoring import Scored
from pipeline.spec import TrainSpec
from pipeline.storage.run_dir import RunDir
from pipeline.storage.write_behind import Writer
from pipeline.training.early_stopping import BestEpoch, BestKeeper
from tests.cells import one_cell, packed_project, run_here, train_task


def keeper(tmp_path, monitor="f1_micro"):
    return BestKeeper(RunDir(tmp_path), monitor, {}, Writer(behind=False))


def offered(keeper, *epochs, informative=True):
    scored = Scored(
        [], np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32), np.zeros((0, 1), np.uint8)
    )
    for number, (value, loss) in enumerate(epochs, 1):
        keeper.offer(BestEpoch(value, number, loss), nn.Linear(1, 1), scored, informative=informative)
    return keeper.best


def test_of_equal_values_the_lower_loss_is_better(tmp_path):
    assert offered(keeper(tmp_path), (0.0, 0.7), (0.0, 0.6), (0.0, 0.65)).epoch == 2
    assert offered(keeper(tmp_path), (0.2, 0.7), (0.1, 0.1)).epoch == 1
    assert offered(keeper(tmp_path, "loss"), (0.7, 0.7), (0.6, 0.6), (0.65, 0.65)).epoch == 2


def test_epochs_without_a_decision_do_not_count_as_waiting(tmp_path):
    silent, told = keeper(tmp_path), keeper(tmp_path)
    offered(silent, *[(0.0, 0.5 + i / 10) for i in range(9)], informative=False)
    offered(told, *[(0.0, 0.5 + i / 10) for i in range(9)])
    assert silent.best.epoch == told.best.epoch == 1
    assert not silent.patience_is_over(1)
    assert told.patience_is_over(8)
    assert not told.patience_is_over(9)
    assert not told.patience_is_over(None)


def test_the_default_watches_scores_not_decisions():
    assert TrainSpec().monitor == "map_macro"


def test_patience_waits_until_there_are_decisions(tmp_path, drawn_zip):
    """With a rate near 0 and the labels' log-odds as bias, no score ever reaches 0.5."""
    settings = {"model": {"name": "cnn2", "head_bias": "prior"}, "optimizer": {"name": "adam", "lr": 1e-9}}
    spec = packed_project(
        tmp_path, drawn_zip, epochs=4, patience_epochs=1, monitor="f1_micro", batch_size=64, **settings
    )
    cell = one_cell(spec)
    assert run_here(train_task(cell), cell.run.log) == 0
    rows = [json.loads(line) for line in cell.run.metrics.read_text().splitlines()]
    rows = [row for row in rows if "validation/loss" in row]
    assert [row["validation/f1_micro"] for row in rows] == [0.0] * 4
    losses = [row["validation/loss"] for row in rows]
    assert [row["best_epoch"] for row in rows] == [1 + int(np.argmin(losses[: i + 1])) for i in range(4)]
    assert "best 0.0000 in epoch" in cell.run.log.read_text()


def test_one_image_a_step_with_batch_norm_is_refused_in_a_sentence(tmp_path, drawn_zip):
    cell = one_cell(packed_project(tmp_path, drawn_zip, batch_size=1, model={"name": "cnn2"}))
    assert run_here(train_task(cell), cell.run.log) != 0
    assert "train.batch_size: 1: cnn2 has batch norm" in cell.run.log.read_text()
    assert "write 2 or more" in cell.run.read_manifest()["error"]
