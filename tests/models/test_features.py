"""Cells that train a head or a last stage on features computed once: the same network, the same rows."""

import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from jobs.planning.plan import make_plan
from jobs.planning.tasks import submission_task, train_task
from jobs.stages import TrainGroupTask
from pipeline.data.packed import PackedSet
from pipeline.errors import SpecError
from pipeline.evaluation.prediction import load_scorer
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.device import ExecutionConfig
from pipeline.models.features import FrozenNetwork
from pipeline.models.scoring import compute_scores
from pipeline.spec import ModelSpec
from pipeline.spec.reading import read_spec
from pipeline.storage.files import read_json
from pipeline.storage.jsonl import read_jsonl
from tests.cells import finish, jobs, packed_project, project, run_here
from tests.local.test_train_groups import start

HEAD = {"name": "mobilenet_v3_small", "weights": "net.pth", "trainable": "head"}
GRID = """
grid:
  cells:
    - {train.optimizer: {name: adam, lr: 1e-2}}
    - {train.optimizer: {name: sgd, lr: 0.1}, train.model.head_hidden: 24, train.model.head_dropout: 0.5}
    - {train.optimizer: {name: adadelta}, train.model.head_bias: prior}
run: {threads: 1}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(build_model(ModelSpec(name="mobilenet_v3_small"), 14, 32).state_dict(), path)
    return path


def planned(tmp_path, drawn_zip, weights, text=GRID, **train):
    tmp_path.mkdir(exist_ok=True)
    model = HEAD | {"weights": str(weights)}
    settings = {"model": model, "epochs": 4, "precision": "fp32", "augment": {"hflip": 0.0}, **train}
    spec = packed_project(tmp_path, drawn_zip, text, **settings)
    plan = make_plan(read_spec(spec))
    return plan, [train_task(plan, cell) for cell in plan.cells]


def curves(cell):
    return [row["validation/loss"] for row in read_jsonl(cell.run.metrics) if "validation/loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("head", [{}, {"head_hidden": 24, "head_dropout": 0.5}, {"trainable": "features.9"}])
@pytest.mark.parametrize("augment", [{"hflip": 0.0}, {"hflip": 0.5, "crop": [0.5, 1], "rotate_deg": 20}])
def test_kept_features_train_the_very_cell_that_is_trained_without(
    tmp_path, drawn_zip, weights, augment, head
):
    text = "run: {threads: 1}\n"
    flips = augment["hflip"] > 0  # then the final scores are of pictures that no features are kept of
    settings = {"augment": augment, "model": HEAD | {"weights": str(weights)} | head, "tta_hflip": flips}
    # Adam makes as large a step of a gradient that is rounding alone as of any other
    settings["optimizer"] = {"name": "sgd", "lr": 0.1}
    settings["monitor"] = "loss"  # rounding must not choose another epoch
    if "trainable" in head:
        settings["epochs"] = 2  # where convolutions learn, it grows from step to step
    plan, (task,) = planned(tmp_path / "without", drawn_zip, weights, text, **settings)
    assert run_here(task) == 0
    views = 4 if augment["hflip"] else 1
    kept, (task,) = planned(tmp_path / "kept", drawn_zip, weights, text, **settings, cached_views=views)
    assert run_here(task) == 0
    # convolutions that learn carry the rounding of fused batch norms on, from step to step
    rtol = 5e-3 if "trainable" in head else 2e-4
    np.testing.assert_allclose(curves(kept.cells[0]), curves(plan.cells[0]), rtol=rtol)
    best, same = (load_checkpoint(p.cells[0].run.checkpoint_best) for p in (plan, kept))
    assert best["model"].keys() == same["model"].keys()
    begun = build_model(plan.cells[0].cell.spec.train.model, 14, 32, weights)
    learnt = {name for name, parameter in begun.named_parameters() if parameter.requires_grad}
    first, one, other = (
        torch.cat([state[name].flatten() for name in sorted(learnt)])
        for state in (begun.state_dict(), best["model"], same["model"])
    )
    did, differs = (one - first).norm(), (other - one).norm()
    assert differs < 0.03 * did  # what training did is the same, but for rounding
    for name, value in best["model"].items():
        if name in learnt:
            continue
        if "running" in name or "tracked" in name:
            torch.testing.assert_close(same["model"][name], value, atol=1e-3, rtol=1e-2, msg=name)
        else:
            assert torch.equal(same["model"][name], value), name
    scores = [np.load(p.cells[0].run.scores_val)["scores"] for p in (plan, kept)]
    np.testing.assert_allclose(*scores, atol=rtol)
    # and predicts as a whole network: through the pictures it gives the scores it had through features
    (run,) = (cell.run for cell in kept.cells)
    assert run_here(submission_task(kept, {run: kept.tests[run.name]})) == 0


@pytest.mark.slow
def test_all_cells_of_a_sweep_and_later_processes_use_one_pass(tmp_path, drawn_zip, weights):
    plan, tasks = planned(tmp_path, drawn_zip, weights, cached_views=1)
    assert len({task.stream for task in tasks}) == 1
    assert run_here(TrainGroupTask(tuple(tasks[:2]))) == 0
    folder = plan.cells[0].data.packed / "features"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(made) == 2  # of the training and of the validation pictures
    assert finish(start(tasks[2])) == 0  # a later process
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")} == made
    assert all(cell.run.why_not_done(cell.identity) is None for cell in plan.cells)
    status, printed = jobs("prune", plan.loaded.path, cwd=tmp_path)
    assert status == 0, printed
    assert not folder.exists()
    assert "3 cells, 0 to run" in jobs("grid", plan.loaded.path, cwd=tmp_path)[1]
    # each as if alone
    hidden = plan.cells[1].run
    alone, tasks = planned(tmp_path / "alone", drawn_zip, weights, cached_views=1)
    assert run_here(tasks[1]) == 0
    assert alone.cells[1].run.name == hidden.name
    assert alone.cells[1].run.scores_val.read_bytes() == hidden.scores_val.read_bytes()


@pytest.mark.slow
def test_damaged_features_are_computed_anew(tmp_path, drawn_zip, weights):
    plan, tasks = planned(tmp_path, drawn_zip, weights, "run: {threads: 1}\n", cached_views=1, epochs=1)
    assert run_here(tasks[0]) == 0
    before = plan.cells[0].run.scores_val.read_bytes()
    for path in (plan.cells[0].data.packed / "features").glob("*.npz"):
        body = bytearray(path.read_bytes())
        body[len(body) // 2] ^= 255
        path.write_bytes(body)
    plan.cells[0].run.checkpoint_best.unlink()
    assert run_here(tasks[0]) == 0
    assert plan.cells[0].run.scores_val.read_bytes() == before


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "cnn3", "trainable": "last_stage"}, "cnn3 has no stages; write trainable: all or head"),
        (
            {"name": "resnet18", "trainable": "lats_stage"},
            "trainable: lats_stage: did you mean `last_stage`?",
        ),
        ({"name": "resnet18", "trainable": "layer4"}, "trainable: layer4 on random weights learns nothing"),
    ],
)
def test_a_part_that_cannot_be_trained_is_refused_before_anything_runs(tmp_path, drawn_zip, model, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        read_spec(project(tmp_path, drawn_zip, model=model))


@pytest.mark.slow
def test_doctor_looks_for_the_parts_that_are_trained(tmp_path, drawn_zip, weights):
    text = "grid: {axes: {train.model.trainable: [last_stage, features.99]}}\n"
    spec = project(tmp_path, drawn_zip, text, model=HEAD | {"weights": str(weights)})
    status, printed = jobs("doctor", spec, cwd=tmp_path)
    assert status == 1
    assert "mobilenet_v3_small at 32 px, last_stage is trained" in printed
    assert "train.model.trainable: the network has no part 'features.99'; did you mean `features.9" in printed


@pytest.mark.slow
def test_a_last_stage_is_scored_at_another_size_from_pictures(tmp_path, drawn_zip, weights):
    text, model = "run: {threads: 1}\n", HEAD | {"weights": str(weights), "trainable": "last_stage"}
    plan, (task,) = planned(
        tmp_path, drawn_zip, weights, text, model=model, cached_views=1, epochs=1, eval_image_px=48
    )
    assert run_here(task) == 0
    run = plan.cells[0].run
    assert read_json(run.provenance)["weights"] == {"file": "net.pth", "sha256": "", "licence": ""}
    best, packed = load_checkpoint(run.checkpoint_best), PackedSet.open(plan.cells[0].data.packed)
    scorer = load_scorer(best, "cpu")
    assert scorer.image_px == 48
    with np.load(run.scores_val) as file:
        rows = np.array([packed.ids.index(i) for i in file["ids"].tolist()])
        (scored,) = compute_scores([scorer], packed, rows)
        np.testing.assert_allclose(scored.scores_NK, file["scores"], atol=1e-4)


def test_features_are_those_of_one_frozen_network(tmp_path, drawn_zip, weights):
    spec = project(tmp_path, drawn_zip, cached_views=1)
    with pytest.raises(SpecError, match="cached_views needs model"):
        read_spec(spec)
    mixed = {"model": HEAD, "cached_views": 1, "augment": {"mixup": 0.2}}
    with pytest.raises(SpecError, match="excludes mixup"):
        read_spec(project(tmp_path, drawn_zip, **mixed))
    text = "grid: {axes: {train.precision: [fp32, bf16], train.optimizer: [{name: sgd}, {name: adam}]}}\n"
    _, tasks = planned(tmp_path / "p", drawn_zip, weights, text, cached_views=1)
    assert len({task.stream for task in tasks}) == 2
    assert {task.spec.train.precision for task in tasks} == {"fp32", "bf16"}


@pytest.mark.parametrize(("trainable", "kept"), [("last_stage", 1), ("head", 2)])
def test_heads_share_the_features_of_the_same_frozen_part(tmp_path, drawn_zip, weights, trainable, kept):
    model = HEAD | {"weights": str(weights), "trainable": trainable}
    text = "grid: {axes: {train.model.head: [{name: linear}, {name: csra}, {name: csra, heads: 4}]}}\n"
    plan, _ = planned(tmp_path / "p", drawn_zip, weights, text, cached_views=1, model=model, image_px=32)
    execution = ExecutionConfig.choose("cpu", "fp32", 1)
    for cell in plan.cells:
        recipe = cell.cell.spec.train
        net, packed = build_model(recipe.model, 14, 32, weights), PackedSet.open(cell.data.packed)
        FrozenNetwork(net, recipe, packed, execution, folder=tmp_path / "kept").plain(np.arange(4))
    assert len(list((tmp_path / "kept").glob("*.npz"))) == kept


@pytest.mark.parametrize(
    ("name", "library"),
    [("timm/test_vit", "timm"), ("mobilenet_v3_small", "torchvision"), ("cnn2", None)],
)
def test_features_of_another_version_of_a_library_are_not_taken_for_these(
    tmp_path, drawn_zip, monkeypatch, name, library
):
    """The frozen weights are the same; what another version makes of them may not be."""
    torch.manual_seed(0)
    net = build_model(ModelSpec(name=name), 14, 32)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = {"name": name, "weights": str(tmp_path / "w.pth"), "trainable": "head"}
    plan, _ = planned(tmp_path / "x", drawn_zip, None, "", model=model, cached_views=1)
    train, packed = plan.cells[0].cell.spec.train, PackedSet.open(plan.cells[0].data.packed)

    def made():
        execution = ExecutionConfig.choose("cpu", "fp32", 1)
        FrozenNetwork(net, train, packed, execution, folder=tmp_path / "kept").plain(np.arange(2))
        return {path.name for path in (tmp_path / "kept").glob("*.npz")}

    first = made()
    assert made() == first
    for other in ("timm", "torchvision"):
        with monkeypatch.context() as newer:
            newer.setattr(f"{other}.__version__", "99.0")
            assert (made() - first == set()) == (other != library), other
            shutil.rmtree(tmp_path / "kept")


def test_features_of_pixels_that_changed_since_are_not_taken_from_before(
    tmp_path, drawn_zip, weights, monkeypatch
):
    def made(augment):
        plan, _ = planned(tmp_path / "x", drawn_zip, weights, "", augment=augment, cached_views=1)
        train, packed = plan.cells[0].cell.spec.train, PackedSet.open(plan.cells[0].data.packed)
        execution = ExecutionConfig.choose("cpu", "fp32", 1)
        frozen = FrozenNetwork(build_model(train.model, 14, 32, weights), train, packed, execution)
        frozen.plain(np.arange(4))
        frozen.augmented(np.arange(4), 0)
        names = {path.name for path in (packed.path / "features").glob("*.npz")}
        shutil.rmtree(tmp_path / "x")
        return names

    flipped, cropped = {"hflip": 0.5}, {"hflip": 0.5, "crop": [0.5, 1]}
    now = made(flipped), made(cropped)
    monkeypatch.setattr("pipeline.models.features.pixel_versions", lambda train, **_: {})
    assert made(flipped) == now[0]
    assert len(made(cropped) & now[1]) == 1  # of pictures as they are scored


@pytest.mark.parametrize("view", [None, 1])
def test_where_memory_runs_out_features_are_made_of_half_as_many(
    tmp_path, drawn_zip, weights, monkeypatch, view
):
    plan, _ = planned(tmp_path, drawn_zip, weights, augment={"hflip": 0.5}, cached_views=2)
    train, packed = plan.cells[0].cell.spec.train, PackedSet.open(plan.cells[0].data.packed)
    monkeypatch.setattr(
        "pipeline.models.features.fuse_conv_bn", nn.Module.eval
    )  # or the limit below would be lost
    monkeypatch.setattr("pipeline.models.slices.PICTURES_PER_THREAD", 64)  # a GPU takes a batch whole
    rows, execution = np.arange(30), ExecutionConfig.choose("cpu", "fp32", 1)
    net = build_model(train.model, 14, 32, weights)
    whole = FrozenNetwork(net, train, packed, execution)._compute(rows, view, tmp_path / "x.npz", 30)
    frozen = FrozenNetwork(net, train, packed, execution)
    sizes, forward = [], frozen._net.forward

    def limited(inputs_BCHW):
        sizes.append(len(inputs_BCHW))
        if len(inputs_BCHW) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(inputs_BCHW)

    monkeypatch.setattr(frozen._net, "forward", limited)
    found = frozen.plain(rows) if view is None else frozen.augmented(rows, view)
    assert sizes[:3] == [30, 30, 16]  # of 64, 32, 16 asked for
    assert max(sizes[3:]) == 8
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_weights_that_changed_while_a_cell_waited_are_not_those_it_is_of(tmp_path, drawn_zip, weights):
    waits = tmp_path / "net.pth"
    shutil.copy(weights, waits)
    plan, (task,) = planned(tmp_path / "p", drawn_zip, waits, "", epochs=1, image_px=32)
    plan.cells[0].run.path.mkdir(parents=True)
    state = torch.load(waits)
    torch.save(
        {name: value + 1 if name == "features.0.0.weight" else value for name, value in state.items()}, waits
    )
    assert run_here(task, plan.cells[0].run.log) != 0
    assert f"{waits}: has changed since the cell was planned" in plan.cells[0].run.read_manifest()["error"]
