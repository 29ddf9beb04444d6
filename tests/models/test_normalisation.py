"""A network's input is normalised as its published weights want it, in training, scoring and export."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model_weights

from pipeline.data.inputs import as_pictures, to_input
from pipeline.data.packed import PackedSet
from pipeline.data.splits import read_split
from pipeline.errors import CheckpointError
from pipeline.evaluation.prediction import _fitting, load_scorer
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.device import ExecutionConfig
from pipeline.models.features import FrozenNetwork
from pipeline.models.scoring import Scorer, compute_scores
from pipeline.predictor import Predictor
from pipeline.spec import IMAGENET, ModelSpec, Preprocessing, TrainSpec
from pipeline.spec.model_names import HEAD_OF, OTHER_NORMALISATIONS
from pipeline.training.attempt import Attempt
from pipeline.training.feeds import build_feed
from pipeline.training.learner import CellData, Learner
from pipeline.training.loop import train
from pipeline.training.stop_signal import StopFlag
from tests.cells import one_cell, project

HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BICUBIC_HALF = HALF._replace(interpolation="bicubic")


def test_the_table_is_torchvision_s():
    wanted = {}
    for name in HEAD_OF:
        for weights in get_model_weights(name):
            transforms = weights.transforms()
            way = transforms.interpolation.value
            wanted[name, weights.name] = Preprocessing(tuple(transforms.mean), tuple(transforms.std), way)
    assert len(wanted) > len(HEAD_OF)
    assert wanted == {
        (name, weights): ModelSpec(name=name, weights=weights).preprocessing for name, weights in wanted
    }
    others = {name for (name, _), value in wanted.items() if value[:2] != IMAGENET[:2]}
    assert others == set(OTHER_NORMALISATIONS)
    assert len({name for (name, _), value in wanted.items() if value.interpolation == "bicubic"}) > 15


def test_a_file_counts_as_published_weights_and_random_ones_take_imagenet_s():
    assert ModelSpec(name="efficientnet_v2_l", weights="net.pth").preprocessing == BICUBIC_HALF
    assert ModelSpec(name="swin_t", weights="net.pth").preprocessing.interpolation == "bicubic"
    assert ModelSpec(name="efficientnet_v2_l").preprocessing == IMAGENET
    assert ModelSpec(name="cnn3", weights="net.pth").preprocessing == IMAGENET


@pytest.mark.parametrize("image_px", [32, 48, 24])
def test_input_is_normalised_as_asked_and_shown_as_it_was(image_px):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    by_half, by_imagenet = (to_input(images, image_px, kind) for kind in (HALF, IMAGENET))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET[:2])
    torch.testing.assert_close(by_half / 2 + 0.5, by_imagenet * std + mean, atol=1e-5, rtol=0)
    if image_px == 32:
        np.testing.assert_array_equal(as_pictures(by_half, HALF), images)
        np.testing.assert_array_equal(as_pictures(by_imagenet, IMAGENET), images)


class Mean(nn.Module):
    """Of the input, by channel: shows what a network was given."""

    def forward(self, inputs_BCHW):
        return inputs_BCHW.mean(dim=(2, 3))


def test_scorers_of_different_networks_each_see_their_own(drawn):
    packed, rows = PackedSet.open(drawn[1]), np.arange(20)
    execution = ExecutionConfig.choose("cpu", "fp32", 1)
    scorers = [Scorer(Mean(), 32, execution, kind) for kind in (HALF, IMAGENET, HALF)]
    means = torch.from_numpy(packed.gather(rows)).float().mean(dim=(1, 2)) / 255
    for scorer, scored in zip(scorers, compute_scores(scorers, packed, rows, batch_size=8), strict=True):
        mean, std = (torch.tensor(values) for values in scorer.preprocessing[:2])
        np.testing.assert_allclose(scored.logits_NK, (means - mean) / std, atol=1e-4)


@pytest.fixture
def half_for_cnn2(monkeypatch):
    """cnn2 as a network of other weights: the real one has 118 million parameters."""
    monkeypatch.setitem(OTHER_NORMALISATIONS, "cnn2", HALF[:2])


@pytest.fixture
def learner(tmp_path, drawn_zip, drawn):
    made = []

    def make(name, **settings):
        _, folder, split_file = drawn
        settings = {"precision": "fp32", "epochs": 1, "augment": {"hflip": 0.0, "crop": [0.5, 1]}, **settings}
        cell = one_cell(project(tmp_path, drawn_zip, name=name, **settings), "run.threads=1")
        split = read_split(split_file)
        data = CellData(packed=PackedSet.open(folder), train=split.train, validation=split.validation)
        model = cell.cell.spec.train.model
        weights = None if model.weights == "none" else model.weights_file
        made.append(Learner(cell.cell.spec, Attempt(cell.run, cell.identity), data, weights=weights))
        return made[-1]

    yield make
    for each in made:
        each.tracker.close()


@pytest.fixture
def weights_file(tmp_path):
    from pipeline.models.build import build_model

    path = tmp_path / "cnn2.pth"
    torch.save(build_model(ModelSpec(name="cnn2"), 14, 32).state_dict(), path)
    return path


def test_training_checkpoint_and_scoring_have_the_weights_own(half_for_cnn2, learner, weights_file):
    one = learner("half", model={"name": "cnn2", "weights": str(weights_file)})
    (inputs, _), (same, _) = (
        next(iter(build_feed(each).batches(0, 0)))
        for each in (one, learner("imagenet", model={"name": "cnn2"}))
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET[:2])
    torch.testing.assert_close(inputs / 2 + 0.5, same * std + mean, atol=1e-4, rtol=0)
    assert one.scorer(final=True).preprocessing == HALF
    train([one], StopFlag())
    best = load_checkpoint(one.run.checkpoint_best)
    assert best["preprocessing"]["mean"] == best["preprocessing"]["std"] == [0.5, 0.5, 0.5]
    assert load_scorer(best, "cpu").preprocessing == HALF


def test_an_export_of_both_kinds_normalises_for_each(half_for_cnn2, learner, weights_file, tmp_path):
    cells = [
        learner("half", model={"name": "cnn2", "weights": str(weights_file)}),
        learner("imagenet", model={"name": "cnn2"}),
    ]
    train(cells, StopFlag())  # in one process, though their inputs differ
    assert all(cell.attempt.is_done for cell in cells)
    predictor = Predictor([cell.run for cell in cells], cells[0].spec.evaluate, "cpu")
    images = cells[0].data.packed.gather(np.arange(6))
    scores = predictor.score(images)
    alone = [
        torch.sigmoid(s.logits(to_input(torch.from_numpy(images), 32, kind))).detach()
        for s, kind in zip(predictor.scorers, (HALF, IMAGENET), strict=True)
    ]
    np.testing.assert_allclose(scores, torch.stack(alone).mean(dim=0), atol=1e-6)
    extra = {"labelgrid.json": ""}
    program = torch.export.load(predictor.export(tmp_path / "model.pt2"), extra_files=extra)
    np.testing.assert_allclose(program.module()(torch.from_numpy(images))[0].detach(), scores, atol=1e-5)
    assert json.loads(extra["labelgrid.json"])["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


def bicubic(monkeypatch):
    """cnn2 as a network whose weights learnt from bicubic pictures."""
    monkeypatch.setattr("pipeline.spec.train.is_bicubic", lambda name, _: name == "cnn2")


def test_training_scoring_and_export_resize_as_the_weights_learnt(
    monkeypatch, learner, weights_file, tmp_path
):
    """Its pictures lie there at 32 px, and it takes 48."""
    bicubic(monkeypatch)
    model = {"name": "cnn2", "weights": str(weights_file)}
    one = learner("x", model=model, image_px=48, augment={"hflip": 0.0, "crop": [1, 1]})
    preprocessing = IMAGENET._replace(interpolation="bicubic")
    shown, _ = next(iter(build_feed(one).batches(0, 0)))
    packed = one.data.packed
    pictures = torch.from_numpy(packed.gather(one.data.train[one.stream.order(0)[: len(shown)]]))
    torch.testing.assert_close(shown, to_input(pictures, 48, preprocessing), atol=1e-3, rtol=0)
    assert (shown - to_input(pictures, 48, IMAGENET)).abs().max() > 0.1
    train([one], StopFlag())
    assert one.attempt.is_done
    with pytest.raises(CheckpointError, match=r"32 px \(squash, bilinear\).*as 32 px \(squash, bicubic\)"):
        _fitting(one.run, replace(packed, interpolation="bicubic"))
    predictor = Predictor([one.run], one.spec.evaluate, "cpu")
    (scorer,) = predictor.scorers
    assert scorer.preprocessing == preprocessing
    images = packed.gather(np.arange(6))
    scores = predictor.score(images)
    wanted = torch.sigmoid(scorer.logits(to_input(torch.from_numpy(images), 48, preprocessing))).detach()
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    program = torch.export.load(predictor.export(tmp_path / "model.pt2"))
    np.testing.assert_allclose(program.module()(torch.from_numpy(images))[0].detach(), scores, atol=1e-5)
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        session = onnx_session(predictor.export(tmp_path / "model.onnx"))
        np.testing.assert_allclose(session.run(None, {"images": images})[0], scores, atol=1e-5)


def onnx_session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path)


def test_networks_of_different_inputs_in_one_process_train_as_alone(half_for_cnn2, learner, weights_file):
    def settings(weights):
        return {"model": {"name": "cnn2", "weights": weights}}

    def curve(*names_and_weights):
        cells = [learner(name, **settings(weights)) for name, weights in names_and_weights]
        train(cells, StopFlag())
        return [load_checkpoint(cell.run.checkpoint_last)["model"] for cell in cells]

    both = curve(("a", "none"), ("b", str(weights_file)))
    alone = curve(("c", "none")) + curve(("d", str(weights_file)))
    for state, same in zip(both, alone, strict=True):
        assert all(torch.equal(value, same[name]) for name, value in state.items())


@pytest.mark.parametrize("view", [None, 0])
def test_cached_features_are_of_the_weights_own_input(half_for_cnn2, drawn, tmp_path, view):
    packed, execution = PackedSet.open(drawn[1]), ExecutionConfig.choose("cpu", "fp32", 1)
    model = ModelSpec(name="cnn2", weights="net.pth", trainable="head")
    spec = TrainSpec(model=model, image_px=32, cached_views=1, precision="fp32")
    frozen = FrozenNetwork(nn.Sequential(Mean(), nn.Identity()), spec, packed, execution)
    found = frozen._compute(np.arange(12), view, tmp_path / "x.npz", 8)
    means = torch.from_numpy(packed.gather(np.arange(12))).float().mean(dim=(1, 2)) / 255
    torch.testing.assert_close(found, (means - 0.5) / 0.5, atol=1e-4, rtol=0)
