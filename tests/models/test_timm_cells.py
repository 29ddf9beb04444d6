"""Cells of networks of timm: trained, on kept features too, scored, loaded, exported; and real weights."""

import io
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.planning.plan import make_plan
from pipeline.data.inputs import to_input
from pipeline.errors import TrainingError
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.predictor import Predictor
from pipeline.spec import ModelSpec
from pipeline.spec.reading import read_spec
from pipeline.storage.jsonl import read_jsonl
from tests.cells import jobs, packed_project, project, run_here, train, train_task

PX = 64


def planned(folder, drawn_zip, **settings):
    """The cells of a spec, their folders ready to train."""
    folder.mkdir(exist_ok=True)
    settings = {"image_px": PX, "epochs": 1, "precision": "fp32", "augment": {"hflip": 0.0}, **settings}
    cells = make_plan(read_spec(packed_project(folder, drawn_zip, "run: {threads: 1}\n", **settings))).cells
    for cell in cells:
        cell.run.path.mkdir(parents=True, exist_ok=True)
    return cells


@pytest.fixture(scope="module", params=["regnetx_002", "test_vit"])
def trained(request, tmp_path_factory, drawn_zip):
    """A finished cell of a CNN or of a transformer."""
    model = {"name": f"timm/{request.param}", "head_bias": "prior"}
    (cell,) = planned(tmp_path_factory.mktemp("timm") / request.param, drawn_zip, model=model)
    assert train(cell) == 0, cell.run.log.read_text()
    return cell


@pytest.mark.slow
def test_a_cell_is_loaded_with_its_own_mean_and_exported_as_it_predicts(trained, tmp_path):
    import onnxruntime

    name = trained.cell.spec.train.model.name
    best = load_checkpoint(trained.run.checkpoint_best)
    mean = 0.5 if name.endswith("vit") else 0.485
    assert best["preprocessing"]["mean"][0] == mean
    model = Predictor.load(trained.run.path, device="cpu")
    assert model.scorers[0].preprocessing.mean[0] == mean
    pictures = list(np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), np.uint8))
    wanted = np.array([list(one.scores.values()) for one in model(pictures)])
    features = model.embeddings(pictures)
    assert features.shape == (4, build_model(ModelSpec(name=name), 14, PX).num_features)
    session = onnxruntime.InferenceSession(model.export(tmp_path / "model.onnx"))
    scores, _ = session.run(None, {"images": np.stack(pictures)})
    np.testing.assert_allclose(scores, wanted, atol=2e-5)
    assert float(wanted.std()) > 0.01


@pytest.mark.slow
def test_without_timm_a_cell_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        TrainingError, match=re.escape("needs the package timm: pip install 'labelgrid[timm]'")
    ):
        Predictor.load(trained.run.path, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["head", "last_stage"])
def test_kept_features_of_tokens_train_the_cell_that_is_trained_without(tmp_path, drawn_zip, trainable):
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    from safetensors.torch import save_file

    save_file(build_model(ModelSpec(name="timm/test_vit"), 14, PX).state_dict(), path)
    model = {"name": "timm/test_vit", "weights": str(path), "trainable": trainable}
    settings = {"model": model, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1}, "monitor": "loss"}
    curves, states = [], []
    for folder, views in (("without", None), ("kept", 1)):
        (cell,) = planned(tmp_path / folder, drawn_zip, **settings, cached_views=views)
        assert run_here(train_task(cell)) == 0
        curves.append(
            [row["validation/loss"] for row in read_jsonl(cell.run.metrics) if "validation/loss" in row]
        )
        states.append(load_checkpoint(cell.run.checkpoint_best)["model"])
    np.testing.assert_allclose(*curves, rtol=1e-5)
    assert curves[0][1] < curves[0][0]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "px"), [("tf_efficientnet_lite0", 224), ("tf_efficientnet_lite2", 260)])
def test_published_weights_see_the_dog_in_photographs_of_dogs(shared, name, px):
    path = shared / "weights" / f"{name}-imagenet.pth"
    model = ModelSpec(name=f"timm/{name}", weights=str(path))
    assert model.preprocessing == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    net = build_model(model, 1000, px, path).eval()
    with zipfile.ZipFile(shared / "data" / "mirflickr-10k.zip") as archive:
        dogs = archive.read("annotations/dog.txt").decode().split()[:40]
        files = [archive.read(f"images/im{number}.jpg") for number in dogs]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    with torch.inference_mode():
        logits = net(to_input(torch.from_numpy(pictures), px, model.preprocessing))
    is_dog = (logits.topk(5).indices >= 151) & (logits.topk(5).indices <= 268)  # ImageNet's 118 breeds
    assert float(is_dog.any(1).float().mean()) > 0.85


# ---------------------------------------------------------------- the verbs


def test_plan_notes_a_size_far_from_that_of_the_weights(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip, model={"name": "timm/resnet18.a1_in1k"})
    status, printed = jobs("plan", spec, cwd=tmp_path)
    assert status == 0, printed
    assert (
        "train.image_px: 32: the weights of timm/resnet18.a1_in1k learnt from pictures of 224 px" in printed
    )
    note = "note: data.interpolation: bilinear: all weights here learnt from bicubic pictures; bicubic packs such ones"
    assert note in printed
    _, printed = jobs("plan", spec, "--set", "data.interpolation=bicubic", cwd=tmp_path)
    assert "data.interpolation: bilinear" not in printed
    _, printed = jobs("plan", spec, "--set", "train.model.name=timm/resnet18.tv_in1k", cwd=tmp_path)
    assert "data.interpolation: bilinear" not in printed
    status, printed = jobs("plan", spec, "--set", "train.model.weights=none", cwd=tmp_path)
    assert "learnt from" not in printed


@pytest.mark.slow
def test_doctor_asks_timm_for_the_names(tmp_path, drawn_zip, monkeypatch):
    spec = project(tmp_path, drawn_zip, model={"name": "timm/test_vit"})
    monkeypatch.setitem(sys.modules, "timm", None)
    status, printed = jobs("doctor", spec, cwd=tmp_path)
    assert status == 1
    assert "timm/test_vit needs the package timm: pip install 'labelgrid[timm]'" in printed


def test_a_cell_of_timm_has_a_folder_of_its_own_name(tmp_path, drawn_zip):
    text = "grid: {axes: {train.model.name: [timm/test_vit, timm/resnet18.a1_in1k]}}\n"
    spec = packed_project(tmp_path, drawn_zip, text)
    names = [cell.run.name for cell in make_plan(read_spec(spec)).cells]
    assert [name.rsplit("-", 1)[0] for name in names] == ["test_vit", "resnet18.a1_in1k"]
    spec = packed_project(tmp_path / "one", drawn_zip, model={"name": "timm/test_vit"})
    (only,) = make_plan(read_spec(spec)).cells
    assert only.run.name.startswith("test_vit-adam-")
    assert only.run.path.parent == tmp_path / "one" / "experiments" / "x"
