"""A cell from its first step to its complete artifacts; killed anywhere, it gives the undisturbed weights."""

import signal

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.stages import EXIT_FAILED, EXIT_STOPPED
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.scoring import compute_logits
from pipeline.storage.jsonl import read_jsonl
from tests.cells import epochs_of, finish, one_cell, packed_project, paused, saved_step, start, train

OFTEN = (
    "run.save_every_min=1e-9",
    "run.save_fraction=1e9",
)  # a checkpoint after every step, whatever it costs
TIMES = ("train/images_per_s", "train/seconds_per_step")
RECIPES = {
    "cnn3": {
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5},
        "augment": {"hflip": 0.5, "vflip": 0.5, "crop": [0.5, 1], "rotate_deg": 20},
        "epochs": 4,
    },
    # with dropout, so that what the network draws itself is tried too
    "dropout": {
        "model": {"name": "cnn3", "head_dropout": 0.5},
        "optimizer": {"name": "rmsprop", "lr": 1e-3},
        "schedule": {"name": "plateau", "patience_epochs": 1},
        "epochs": 3,
    },
    # all that a recipe can have of its own state or draws
    "everything": {
        "model": {"name": "mobilenet_v3_small", "head_bias": "prior"},
        "optimizer": {
            "name": "adamw",
            "lr": 1e-3,
            "backbone_lr_factor": 0.3,
            "layer_decay": 0.9,
            "groups": [{"parameters": "features.1?.*", "lr_factor": 2, "weight_decay": 0.1}],
        },
        "loss": {"name": "asymmetric", "gamma_negative": 2},
        "sampling": {"name": "repeat_factor", "threshold": 0.3, "negatives": 0.5},
        "augment": {
            "trivial_augment": True,
            "brightness": 0.3,
            "random_erasing": 0.3,
            "mixup": 0.2,
            "cutmix": 1.0,
            "mix_fraction": 0.5,
        },
        "ema_epochs": 0.5,
        "clip_grad_norm": 1.0,
        "freeze_backbone_epochs": 1,
        "tta_hflip": True,
        "batch_size": 32,
        "epochs": 3,
    },
    "timm's CNN": {
        "model": {"name": "timm/test_efficientnet", "head_dropout": 0.2},
        "optimizer": {"name": "adamw", "lr": 1e-3, "layer_decay": 0.8, "weight_decay": 0.05},
        "image_px": 64,
        "epochs": 3,
    },
    "timm's transformer": {
        "model": {"name": "timm/test_vit", "head": {"name": "csra"}},
        "optimizer": {"name": "adamw", "lr": 1e-3, "layer_decay": 0.8, "weight_decay": 0.05},
        "augment": {"hflip": 0.5, "mixup": 0.2},
        "ema_epochs": 0.5,
        "image_px": 64,
        "epochs": 3,
    },
}


def weights(cell):
    return load_checkpoint(cell.run.checkpoint_last)["model"]


def inside(cell, epoch, steps=12):
    """Whether a cell's folder tells that it was saved inside an epoch of so many steps, after `epoch` whole ones."""

    def found(folder):
        step = saved_step(folder, cell.identity) if epochs_of(folder) >= epoch else 0
        return step > epoch * steps and step % steps > 0

    return found


def stopped(cell, epoch, number, steps=12):
    """Train it in a process of its own until that is sent a signal inside an epoch, after `epoch` whole ones."""
    process = start(cell)
    with paused(cell.run.path.parent, cell.run.name, when=inside(cell, epoch, steps)):
        process.send_signal(number)
    return finish(process)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.slow
def test_killed_inside_an_epoch_and_started_again_it_gives_the_same_bits(tmp_path, drawn_zip, recipe):
    straight_spec = packed_project(tmp_path / "a", drawn_zip, **RECIPES[recipe])
    straight = one_cell(straight_spec, "run.threads=1")
    assert train(straight) == 0, straight.run.log.read_text()

    killed_spec = packed_project(tmp_path / "b", drawn_zip, **RECIPES[recipe])
    killed = one_cell(killed_spec, "run.threads=1", *OFTEN)
    assert killed.identity == straight.identity
    steps = read_jsonl(straight.run.metrics)[-1]["step"] // RECIPES[recipe]["epochs"]
    assert stopped(killed, 1, signal.SIGKILL, steps) == -signal.SIGKILL
    # another number of threads would give other bits: the one it was begun with is kept
    again = one_cell(killed_spec, "run.threads=2", *OFTEN)
    assert stopped(again, 2, signal.SIGTERM, steps) == EXIT_STOPPED
    assert "Interrupted by SIGTERM" in killed.run.log.read_text()
    assert train(killed) == 0, killed.run.log.read_text()

    assert load_checkpoint(killed.run.checkpoint_last)["execution"]["threads"] == 1
    found = weights(killed)
    for name, value in weights(straight).items():
        assert torch.equal(value, found[name]), name
    assert straight.run.scores_val.read_bytes() == killed.run.scores_val.read_bytes()
    untimed = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(cell.run.metrics)]
        for cell in (straight, killed)
    ]
    assert untimed[0] == untimed[1]
    assert killed.run.why_not_done(killed.identity) is None


@pytest.mark.slow
def test_training_stops_when_the_best_epoch_lies_back_too_far(tmp_path, drawn_zip):
    cell = one_cell(packed_project(tmp_path, drawn_zip, epochs=60, patience_epochs=2))
    assert train(cell) == 0, cell.run.log.read_text()
    rows = [row for row in read_jsonl(cell.run.metrics) if "validation/loss" in row]
    best = load_checkpoint(cell.run.checkpoint_best)["best"]["epoch"]
    assert [row["epoch"] for row in rows] == list(range(1, best + 3))
    assert best + 2 < 60
    assert f"stopped early after epoch {best + 2}: the best is {best}" in cell.run.log.read_text()
    assert cell.run.why_not_done(cell.identity) is None


@pytest.mark.slow
def test_a_finished_cell_holds_all_it_promises(tmp_path, drawn_zip):
    cell = one_cell(packed_project(tmp_path, drawn_zip, epochs=3))
    assert train(cell) == 0, cell.run.log.read_text()
    run = cell.run
    promised = {
        *("spec.yaml", "manifest.json", "provenance.json", "metrics.jsonl", "scores_val.npz", "log.txt"),
        *("checkpoint_last.pt", "checkpoint_previous.pt", "checkpoint_best.pt"),
    }
    assert promised <= {path.name for path in run.path.iterdir()}
    rows = [row for row in read_jsonl(run.metrics) if "validation/loss" in row]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    wanted = {
        "train/loss",
        "train/lr",
        "train/images_per_s",
        "validation/f1_micro",
        "validation/label_accuracy",
    }
    assert wanted <= rows[0].keys()
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]

    events = EventAccumulator(str(run.path))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= wanted
    logged = [event.value for event in events.Scalars("validation/f1_micro")]
    np.testing.assert_allclose(logged, [row["validation/f1_micro"] for row in rows], rtol=1e-6)

    best = load_checkpoint(run.checkpoint_best)
    scores = [row["validation/map_macro"] for row in rows]
    assert (best["best"]["value"], best["best"]["epoch"]) == (max(scores), scores.index(max(scores)) + 1)
    assert best["best"]["loss"] == rows[best["best"]["epoch"] - 1]["validation/loss"]
    assert len(best["labels"]) == len(best["thresholds"]["per_label"]) == 14
    with np.load(run.scores_val) as scored:
        assert scored["scores"].shape == scored["targets"].shape == (48, 14)
        assert scored["labels"].tolist() == best["labels"]

    assert train(cell) == 0  # whole: nothing is trained again
    assert [row for row in read_jsonl(run.metrics) if "validation/loss" in row] == rows


@pytest.mark.parametrize(
    ("recipe", "passes", "writes"),
    [
        ({"epochs": 2, "monitor": "loss"}, 2, 2),  # the last is the best: written with its thresholds at once
        ({"epochs": 2, "monitor": "loss", "tta_hflip": True}, 3, 3),
    ],
)
@pytest.mark.slow
def test_what_the_best_epoch_scored_is_not_scored_again(
    tmp_path, drawn_zip, monkeypatch, recipe, passes, writes
):
    cell = one_cell(packed_project(tmp_path, drawn_zip, **recipe))
    scored, written = [], []

    def counted_write(path, *arguments, **options):
        written.append(path)
        return save_checkpoint(path, *arguments, **options)

    monkeypatch.setattr("pipeline.training.early_stopping.save_checkpoint", counted_write)

    def counted(*arguments):
        scored.append(arguments)
        return compute_logits(*arguments)

    monkeypatch.setattr("pipeline.training.feeds.compute_logits", counted)
    assert train(cell) == 0
    assert len(scored) == passes
    losses = [row["validation/loss"] for row in read_jsonl(cell.run.metrics) if "validation/loss" in row]
    assert losses[1] < losses[0]
    assert written.count(cell.run.checkpoint_best) == writes
    # and is what the best weights give when the end is done anew
    whole = [cell.run.scores_val, cell.run.checkpoint_best]
    before = [path.read_bytes() for path in whole]
    cell.run.scores_val.unlink()
    assert finish(start(cell)) == 0, cell.run.log.read_text()
    assert len(scored) == passes
    assert [path.read_bytes() for path in whole] == before


@pytest.mark.slow
def test_a_cell_whose_best_weights_are_gone_is_trained_anew(tmp_path, drawn_zip):
    cell = one_cell(packed_project(tmp_path, drawn_zip, epochs=1))
    assert train(cell) == 0
    before = cell.run.scores_val.read_bytes()
    cell.run.checkpoint_best.unlink()
    assert train(cell) == 0, cell.run.log.read_text()
    assert "the best weights are lost, so this cell is trained anew" in cell.run.log.read_text()
    assert cell.run.scores_val.read_bytes() == before


@pytest.mark.slow
def test_a_run_that_diverges_keeps_its_last_good_state_and_is_not_begun_again(tmp_path, drawn_zip):
    """By a rate that grows slowly from 0, so that some epochs are good; saved after every step."""
    recipe = {
        "optimizer": {"name": "sgd", "lr": 1e30},
        "schedule": {"name": "constant", "warmup_epochs": 1e24},
        "precision": "fp32",
    }
    cell = one_cell(packed_project(tmp_path, drawn_zip, epochs=60, **recipe), *OFTEN)
    assert finish(start(cell)) == EXIT_FAILED
    manifest = cell.run.read_manifest()
    assert manifest["state"] == "diverged"
    assert "finite" in manifest["error"] or "loss became" in manifest["error"]
    assert "Traceback" not in cell.run.log.read_text()
    good = load_checkpoint(cell.run.checkpoint_last)
    assert good["step"] > 0
    assert all(torch.isfinite(value).all() for value in good["model"].values())
    before = cell.run.checkpoint_last.stat().st_mtime_ns
    assert finish(start(cell)) == EXIT_FAILED  # a requeued job meets it again
    assert cell.run.checkpoint_last.stat().st_mtime_ns == before
    assert cell.run.read_manifest() == manifest


@pytest.mark.slow
def test_a_state_of_another_batch_order_is_refused(tmp_path, drawn_zip):
    cell = one_cell(packed_project(tmp_path, drawn_zip, epochs=3), *OFTEN)
    assert stopped(cell, 1, signal.SIGTERM) == EXIT_STOPPED
    for path in (cell.run.checkpoint_last, cell.run.checkpoint_previous):
        save_checkpoint(path, load_checkpoint(path) | {"stream_version": 0})
    assert finish(start(cell)) == EXIT_FAILED
    assert "begun by another version of the batch order" in cell.run.read_manifest()["error"]
