"""One cell by N processes is the cell that one process trains: rows, losses, weights, scores.

All recipes of a table are trained in one start of N processes (gloo, on the CPU), as each start imports torch.
"""

import json
import subprocess
import sys
import uuid

import numpy as np
import pytest
import torch

from jobs.stages import encode
from pipeline.models.build import build_model
from pipeline.spec import ModelSpec
from tests.cells import PATIENCE_S, clean_environment, one_cell, packed_project, project, train_task
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]  # what is trained is shared

# at a higher rate, one unit of a ReLU that rounding switches grows to more than rounding within 20 steps
SGD = {"optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9}}
# 192 training pictures in batches of 10: 20 steps, the last one of 2 pictures, fewer than 4 processes
BASE = {"model": {"name": "cnn3"}, "batch_size": 10, "epochs": 1, "precision": "fp32", **SGD}
MIXED = {"mixup": 0.4, "cutmix": 1.0, "mix_fraction": 0.8, "random_erasing": 0.3, "trivial_augment": True}
WARPED = {"hflip": 0.5, "crop": [0.5, 1], "rotate_deg": 20, "brightness": 0.2}
LOSSES = {
    "bce": {
        "name": "bce",
        "pos_weight": "balanced",
        "label_smoothing": 0.1,
        "label_weight": "class_balanced",
    },
    "focal": {"name": "focal", "alpha": 0.4},
    "asymmetric": {"name": "asymmetric"},
    "soft_f1_micro": {"name": "soft_f1", "average": "micro"},
    "soft_f1_macro": {"name": "soft_f1", "average": "macro"},
    "soft_f1_weighted": {"name": "soft_f1", "average": "weighted"},
    "bce_soft_f1": {"name": "bce_soft_f1"},
    "softmax_f1": {"name": "failed_softmax_f1"},
}
RECIPES = {
    **{name: {"loss": loss} for name, loss in LOSSES.items()},
    "warped": {"augment": WARPED},
    "mixed": {"augment": MIXED},
    "own": {"augment": MIXED | WARPED | {"own": {"name": "mylab.changes:noise"}}},
    "averaged": {"ema_epochs": 0.5, "clip_grad_norm": 0.5},
    "adam": {"optimizer": {"name": "adam", "lr": 1e-4}},
    "micro": {"batch_size": 16},
    "micro_uneven": {},
    "micro_f1": {"batch_size": 16, "loss": LOSSES["soft_f1_macro"]},
    "features": {"cached_views": 1},
    "views": {"cached_views": 2, "augment": WARPED, "epochs": 2},
}
OF_FOUR = (
    "warped",
    "mixed",
    "own",
    "soft_f1_macro",
    "micro_uneven",
    "views",
)  # what each rank's share decides
OWN_CODE = """import torch


def noise(images, generator):
    drawn = torch.rand(images.shape, generator=generator, device=images.device)
    return (images + images.roll(1, 0) + drawn) / 3
"""
RUNS = [(name, ranks) for name in RECIPES for ranks in (2, 4) if ranks == 2 or name in OF_FOUR]
MICRO = {"micro": 8, "micro_uneven": 7, "micro_f1": 8, "short_forward": 8, "short_last": 8}
# what disturbs a run of N processes; each ends as the recipe it names
DISTURBED = {
    "again": ({"augment": WARPED}, {}, "warped"),
    "stopped": ({"augment": WARPED}, {"stop": {"rank": 1, "step": 5}}, "warped"),
    "once_short": (
        {"augment": WARPED},
        {"short": {"rank": 1, "layer": "7", "images": 1, "step": 4}},
        "warped",
    ),
    "short_at_first": (
        {"augment": WARPED},
        {"short": {"rank": 0, "layer": "10", "images": 1, "step": 0}},
        "warped",
    ),
    "short_forward": ({"batch_size": 16}, {"short": {"rank": 1, "layer": "6", "images": 4}}, "micro"),
    "short_of_features": (RECIPES["views"], {"short_of_features": {"rank": 1, "images": 20}}, "views"),
    "short_last": ({"batch_size": 16}, {"short": {"rank": 0, "layer": "10", "images": 4}}, "micro"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(build_model(ModelSpec(name="mobilenet_v3_small"), 14, 32).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, drawn_zip, weights):
    """trained(N, cell): what each rank found of a cell; N processes start once."""
    root = tmp_path_factory.mktemp("ranks")
    head = {"name": "mobilenet_v3_small", "weights": str(weights), "trainable": "head"}
    recipes = {name: BASE | recipe for name, recipe in RECIPES.items()}
    recipes |= {name: BASE | recipe for name, (recipe, _, _) in DISTURBED.items()}
    recipes |= {name: recipes[name] | {"model": head} for name in ("features", "views", "short_of_features")}
    done = {}

    def found(ranks, name):
        if ranks not in done:
            folder = root / f"of-{ranks}"
            (folder / "mylab").mkdir(parents=True)
            (folder / "mylab" / "changes.py").write_text(OWN_CODE)
            cells = {}
            for cell, recipe in recipes.items():
                more = DISTURBED[cell][1] if cell in DISTURBED else {}
                if (ranks == 4 and cell not in OF_FOUR) or (ranks == 1 and cell in DISTURBED):
                    continue
                make = project if cells else packed_project
                planned = one_cell(make(folder, drawn_zip, name=cell, **recipe), "run.threads=1")
                micro = {"micro_batch": MICRO[cell]} if cell in RECIPES and cell in MICRO else {}
                own_features = (
                    "-of-its-own" if cell == "short_of_features" else ""
                )  # none are there to be read
                features = {"features": str(folder / f"features{own_features}")}
                cells[cell] = {"task": encode(train_task(planned)), **micro, **more, **features}
            start(folder, ranks, cells)
            done[ranks] = folder
        folder = done[ranks] / "experiments" / name
        return [torch.load(next(folder.glob(f"*/of-{ranks}/{rank}.pt"))) for rank in range(ranks)]

    return found


def start(folder, ranks, cells, ends=0):
    """What each of the processes printed; `ends`: the exit status of the first one."""
    table = folder / "table.json"
    table.write_text(json.dumps({"ranks": ranks, "meeting": str(folder / "meeting.json"), "cells": cells}))
    word = uuid.uuid4().hex
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.rank", str(table)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=clean_environment()
            | {"OMP_NUM_THREADS": "1", "LABELGRID_RANK": str(rank), "LABELGRID_MEETING": word},
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    found = [process.returncode for process in processes]
    assert found == [0] * ranks if ends == 0 else found[0] == ends, "\n====\n".join(said)
    return said


def far(found, expected):
    """The largest difference of two sets of weights."""
    return max(float((found[name].double() - expected[name].double()).abs().max()) for name in expected)


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_of_them_together_read_the_rows_of_one_process(trained, ranks):
    (alone,) = trained(1, "warped")
    parts = trained(ranks, "warped")
    wanted = set(alone["train"])
    steps = [rows for rows in alone["read"] if set(rows) <= wanted]
    shares = [[rows for rows in part["read"] if set(rows) <= wanted] for part in parts]
    assert len(steps) == len(shares[0]) == 20
    for step, rows in enumerate(steps):
        found = [row for share in shares for row in share[step]]
        more = max(0, ranks - len(rows))  # of those that have none: the first one, uncounted
        assert sorted(found) == sorted(rows + rows[:1] * more)
    assert len(steps[-1]) == 2
    # validation is shared out too
    scored = [row for part in parts for rows in part["read"] for row in rows if row not in wanted]
    assert sorted(scored) == sorted(row for rows in alone["read"] for row in rows if row not in wanted)


@pytest.mark.parametrize(("recipe", "ranks"), [run for run in RUNS if run[0] != "adam"])
def test_weights_and_losses_are_those_of_one_process(trained, recipe, ranks):
    (alone,) = trained(1, recipe)
    parts = trained(ranks, recipe)
    assert [part["error"] for part in parts] == [""] * ranks
    assert len(alone["losses"]) == len(parts[0]["losses"])
    np.testing.assert_allclose(parts[0]["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
    assert far(parts[0]["model"], alone["model"]) <= 1e-5
    torch.testing.assert_close(parts[0]["scores"], alone["scores"], rtol=1e-4, atol=1e-4)
    for part in parts[1:]:  # each rank holds the same bits
        assert part["losses"] == parts[0]["losses"]
        assert far(part["model"], parts[0]["model"]) == 0
        assert torch.equal(part["scores"], parts[0]["scores"])


def test_with_adam_losses_and_outputs_are_those_of_one_process(trained):
    (alone,), parts = trained(1, "adam"), trained(2, "adam")
    np.testing.assert_allclose(parts[0]["losses"], alone["losses"], rtol=1e-5)
    # the bias of a convolution before batch norm has no gradient but rounding, which Adam follows: so by batch
    # statistics, which take a bias out again
    torch.manual_seed(0)
    inputs, net = torch.randn(16, 3, 32, 32), build_model(ModelSpec(name="cnn3"), 14, 32)
    outputs = []
    for each in (alone, parts[0]):
        net.load_state_dict(each["model"])
        outputs.append(net.train()(inputs))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", [cell for cell, (*_, same_as) in DISTURBED.items() if same_as == "warped"])
def test_stopped_or_short_of_memory_on_one_rank_it_ends_with_the_same_bits(trained, cell):
    undisturbed, found = trained(2, "warped"), trained(2, cell)
    for rank in range(2):
        assert found[rank]["losses"] == undisturbed[rank]["losses"]
        assert far(found[rank]["model"], undisturbed[rank]["model"]) == 0
        assert torch.equal(found[rank]["scores"], undisturbed[rank]["scores"])


@pytest.mark.parametrize("cell", ["short_forward", "short_last", "short_of_features"])
def test_without_memory_on_one_rank_all_take_smaller_parts(trained, cell):
    (alone,) = trained(1, DISTURBED[cell][2])
    for part in trained(2, cell):
        assert part["error"] == ""
        np.testing.assert_allclose(part["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
        assert far(part["model"], alone["model"]) <= 1e-5
