"""Predicting in Python gives what the submission was made of; exported files carry all they need."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import CheckpointError, DataError, PipelineError
from pipeline.evaluation.selection import Selection
from pipeline.predictor import Predictor
from pipeline.storage.run_dir import ExperimentDir

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(finished):
    return Predictor.load(finished, device="cpu")


@pytest.fixture(scope="module")
def scored(finished):
    """name -> scores of the test images, as `make submission` found them."""
    run = finished / Selection.read(ExperimentDir(finished)).cell
    with np.load(run / "scores_test.npz") as file:
        return dict(zip(file["names"].tolist(), file["scores"], strict=True))


@pytest.fixture(scope="module")
def files(drawn_zip):
    """name -> bytes of the test images."""
    with zipfile.ZipFile(drawn_zip.test) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        return {name.rsplit("/", 1)[-1]: archive.read(name) for name in names}


def values(prediction):
    return np.array(list(prediction.scores.values()), np.float32)


def test_a_file_its_bytes_and_a_pillow_image_score_as_in_the_submission(model, scored, files, tmp_path):
    for name in list(files)[:3]:
        path = tmp_path / name
        path.write_bytes(files[name])
        for image in (path, files[name], Image.open(io.BytesIO(files[name]))):
            np.testing.assert_allclose(values(model(image)), scored[name], atol=1e-5)


def test_a_whole_archive_is_decided_as_in_the_submission(model, drawn_zip, finished):
    with (finished / "submission.csv").open(newline="") as file:
        rows = {row.pop("ids"): row for row in csv.DictReader(file)}
    found = {
        name.rsplit("/", 1)[-1]: prediction
        for name, prediction in model.folder(drawn_zip.test, batch_size=16)
    }
    assert set(found) == set(rows)
    for name, row in rows.items():
        assert found[name].labels == [label for label, decision in row.items() if decision == "1"]


def test_a_torch_export_scores_alike_and_names_its_labels(model, scored, files, tmp_path):
    path = model.export(tmp_path / "model.pt2")
    extra = {"labelgrid.json": ""}
    program = torch.export.load(path, extra_files=extra)
    card = json.loads(extra["labelgrid.json"])
    assert card["labels"] == model.labels
    assert card["rule"]["thresholds"] == model.rule.as_dict()["thresholds"]
    assert card["preprocessing"]["packed_px"] == 32
    for names in (list(files)[:1], list(files)[:5]):
        images = torch.from_numpy(np.stack([model._pixels(files[name]) for name in names]))
        expected = np.stack([scored[name] for name in names])
        np.testing.assert_allclose(program.module()(images).detach(), expected, atol=1e-5)


def test_an_onnx_export_scores_alike_where_its_packages_are(model, scored, files, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    loaded = onnx.load(model.export(tmp_path / "model.onnx"))
    (card,) = [entry.value for entry in loaded.metadata_props if entry.key == "labelgrid"]
    assert json.loads(card)["labels"] == model.labels
    names = list(files)[:3]
    images = np.stack([model._pixels(files[name]) for name in names])
    (found,) = ReferenceEvaluator(loaded).run(None, {loaded.graph.input[0].name: images})
    np.testing.assert_allclose(found, np.stack([scored[name] for name in names]), atol=1e-5)


def test_what_cannot_be_is_said(model, tmp_path):
    with pytest.raises(CheckpointError, match="has no selected cell and is not a cell"):
        Predictor.load(tmp_path)
    with pytest.raises(DataError, match=r"notes\.jpg: cannot be decoded"):
        (tmp_path / "notes.jpg").write_text("no picture")
        model(tmp_path / "notes.jpg")
    with pytest.raises(
        DataError, match=r"scan\.heic: cannot be decoded: a HEIC picture: install|not an image"
    ):
        (tmp_path / "scan.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
        list(model.folder(tmp_path))
    with pytest.raises(PipelineError, match=r"must end in \.pt2 or \.onnx"):
        model.export(tmp_path / "model.pth")


def test_whatever_decoding_raises_names_the_picture(model, tmp_path, monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr("pipeline.predictor.decode", fails)
    (tmp_path / "im.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"im\.jpg: cannot be decoded: needs more memory than there is"):
        model(tmp_path / "im.jpg")


def test_a_damaged_member_of_an_archive_is_named(model, drawn_zip, tmp_path):
    body = bytearray(drawn_zip.test.read_bytes())
    with zipfile.ZipFile(drawn_zip.test) as archive:
        first = min((e for e in archive.infolist() if e.filename.endswith(".jpg")), key=lambda e: e.filename)
    body[first.header_offset + 300] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(body)
    with pytest.raises(DataError, match=rf"{first.filename}: cannot be decoded: Bad CRC-32"):
        list(model.folder(tmp_path / "a.zip"))


def test_the_range_of_the_training_set_is_kept(model, monkeypatch):
    grey_HW = np.linspace(0, 4095, 32 * 32).reshape(32, 32).astype(np.uint16)
    assert model.preprocessing["range"] is None
    assert model._pixels(Image.fromarray(grey_HW)).max() == 15
    monkeypatch.setitem(model.preprocessing, "range", (0, 4095))
    assert model._pixels(Image.fromarray(grey_HW)).max() == 255
