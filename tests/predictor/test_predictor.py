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
from pipeline.models.build import head_of
from pipeline.predictor import Predictor
from pipeline.predictor.pictures import packed_pixels
from pipeline.storage.run_dir import ExperimentDir
from tests.conftest import jpeg

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


def pixels(model, picture):
    """Packed."""
    return packed_pixels(picture, model.preparations)[0]


def names_of(model, decisions_BK):
    return [
        [label for label, one in zip(model.labels, row, strict=True) if one]
        for row in np.asarray(decisions_BK)
    ]


def test_a_file_its_bytes_and_a_pillow_image_score_as_in_the_submission(model, scored, files, tmp_path):
    for name in list(files)[:3]:
        path = tmp_path / name
        path.write_bytes(files[name])
        for image in (path, files[name], Image.open(io.BytesIO(files[name]))):
            np.testing.assert_allclose(values(model(image)), scored[name], atol=1e-5)


def test_a_whole_archive_is_decided_as_in_the_submission(model, drawn_zip, finished):
    with (finished / "submission.csv").open(newline="") as file:
        rows = {row.pop("ids"): row for row in csv.DictReader(file)}
    found = {name.rsplit("/", 1)[-1]: prediction for name, prediction in model.folder(drawn_zip.test)}
    assert set(found) == set(rows)
    for name, row in rows.items():
        assert found[name].labels == [label for label, decision in row.items() if decision == "1"]


def test_a_picture_comes_in_every_way_that_applications_have(model, scored, files, tmp_path):
    name, body = next(iter(files.items()))
    array = np.asarray(Image.open(io.BytesIO(body)))
    pillow = Image.open(io.BytesIO(body))
    loaded = Image.open(io.BytesIO(body))
    loaded.load()
    before = loaded.tobytes()
    several = [array, Image.fromarray(array), io.BytesIO(body), bytearray(body), loaded, pillow]
    found_here = [*model(several), model(array)]
    several[2].seek(0)
    for found in (*found_here, *model(iter(several))):
        np.testing.assert_allclose(values(found), scored[name], atol=1e-5)
    assert loaded.tobytes() == before
    assert pillow.size == loaded.size == (32, 32)


def test_an_image_of_the_caller_stays_as_it_is(model):
    """A JPEG decoder can halve large pictures, and Pillow then changes the image it was asked through."""
    body = jpeg(size=(640, 480))
    image = Image.open(io.BytesIO(body))
    found = model(image)
    assert image.size == (640, 480)
    image.load()
    assert image.tobytes() == Image.open(io.BytesIO(body)).tobytes()
    assert found == model(body)


def test_the_frame_that_is_shown_is_predicted(model):
    """Of a TIFF or GIF with several, not the first one of its file."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    body = io.BytesIO()
    frames[0].save(body, "TIFF", save_all=True, append_images=frames[1:])
    image = Image.open(body)
    image.seek(1)
    assert pixels(model, image)[0, 0].tolist() == [0, 0, 255]
    assert pixels(model, Image.open(body))[0, 0].tolist() == [255, 0, 0]


def test_an_export_that_breaks_off_leaves_the_one_before(model, tmp_path, monkeypatch):
    (tmp_path / "m.pt2").write_bytes(b"before")

    def fails(_, path, **__):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", fails)
    with pytest.raises(PipelineError, match=r"m\.pt2: cannot be written: No space left on device"):
        model.export(tmp_path / "m.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
    assert (tmp_path / "m.pt2").read_bytes() == b"before"


def test_what_an_application_asks_of_a_prediction(model, files):
    found = model(next(iter(files.values())))
    top = found.top(3)
    assert [score for _, score in top] == sorted(found.scores.values(), reverse=True)[:3]
    assert json.loads(json.dumps(found.to_dict())) == {"scores": found.scores, "labels": found.labels}
    everything = model.with_thresholds(dict.fromkeys(model.labels, 0.0))
    assert everything(next(iter(files.values()))).labels == model.labels
    assert everything.thresholds == dict.fromkeys(model.labels, 0.0)
    one = model.with_thresholds({model.labels[2]: 0.25}).thresholds
    assert one == model.thresholds | {model.labels[2]: 0.25}
    with pytest.raises(PipelineError, match="zebra: no such label; the labels are"):
        model.with_thresholds({"zebra": 0.5})


def test_embeddings_are_what_the_head_sees(model, files):
    some = list(files.values())[:3]
    found_BD = model.embeddings(some)
    head = head_of(model.scorers[0].net, "cnn3")
    logits = head(torch.from_numpy(found_BD)).detach()
    scores = np.stack([values(one) for one in model(some)])
    np.testing.assert_allclose(torch.sigmoid(logits), scores, atol=1e-5)
    np.testing.assert_array_equal(model.embeddings(some[0]), found_BD[:1])


def test_a_broken_file_does_not_end_a_folder(model, files, tmp_path):
    names = list(files)[:3]
    for name in names:
        (tmp_path / name).write_bytes(files[name])
    (tmp_path / "broken.jpg").write_bytes(files[names[0]][:100])
    found = model.folder(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 4 pictures are left out: broken\.jpg: cannot be decoded: "):
        pairs = dict(found)
    assert set(pairs) == set(names)
    assert list(found.broken) == ["broken.jpg"]
    streamed = model.stream([files[names[0]], b"no picture", tmp_path / names[1]])
    with pytest.warns(UserWarning, match=r"1 of 3 pictures are left out: picture 1: "):
        assert [name for name, _ in streamed] == ["picture 0", str(tmp_path / names[1])]


def test_memory_holds_one_batch_of_a_stream(finished, files):
    model = Predictor.load(finished, device="cpu", batch_size=4)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield next(iter(files.values()))

    stream = iter(model.stream(endless()))
    next(stream)
    assert len(taken) == 4


def test_a_torch_export_scores_alike_and_names_its_labels(model, scored, files, tmp_path):
    path = model.export(tmp_path / "model.pt2")
    extra = {"labelgrid.json": ""}
    program = torch.export.load(path, extra_files=extra)
    card = json.loads(extra["labelgrid.json"])
    assert card["labels"] == model.labels
    assert card["rule"]["thresholds"] == model.rule.as_dict()["thresholds"]
    assert card["preprocessing"]["packed_px"] == 32
    for names in (list(files)[:1], list(files)[:5]):
        images = torch.from_numpy(np.stack([pixels(model, files[name]) for name in names]))
        expected = np.stack([scored[name] for name in names])
        scores, decisions = program.module()(images)
        np.testing.assert_allclose(scores.detach(), expected, atol=1e-5)
        assert names_of(model, decisions) == [model(files[name]).labels for name in names]


def test_an_onnx_export_scores_alike_where_its_packages_are(model, scored, files, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    loaded = onnx.load(model.export(tmp_path / "model.onnx"))
    (card,) = [entry.value for entry in loaded.metadata_props if entry.key == "labelgrid"]
    assert json.loads(card)["labels"] == model.labels
    names = list(files)[:3]
    images = np.stack([pixels(model, files[name]) for name in names])
    found, decisions = ReferenceEvaluator(loaded).run(["scores", "labels"], {"images": images})
    assert names_of(model, decisions) == [model(files[name]).labels for name in names]
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
        model(tmp_path / "scan.heic")
    with pytest.raises(DataError, match=r"2 of 2 pictures are left out: notes\.jpg: cannot be decoded: "):
        list(model.folder(tmp_path))
    with pytest.raises(
        TypeError, match=r"an array of 3 x 8 x 9, channels first; write array\.transpose\(1, 2, 0\)"
    ):
        model(np.zeros((3, 8, 9), np.uint8))
    with pytest.raises(TypeError, match=r"an array of 8 x 9 x 3 of float64; write uint8 values"):
        model(np.zeros((8, 9, 3)))
    with pytest.raises(PipelineError, match=r"must end in \.pt2 or \.onnx"):
        model.export(tmp_path / "model.pth")


# what an application hands over -> the error
NO_PICTURES = [
    ("nope.jpg", FileNotFoundError, "nope.jpg: there is no such picture; the nearest names there: noper.jpg"),
    ("folder", IsADirectoryError, "folder: is a folder; write model.folder('folder')"),
    (b"no picture", DataError, "the picture: cannot be decoded: not an image file that Pillow knows"),
    (io.BytesIO(b""), DataError, "the picture: cannot be decoded: not an image file that Pillow knows"),
    (["nope.jpg"], FileNotFoundError, "nope.jpg: there is no such picture; the nearest names there: noper.jpg"),
    ([7], TypeError, "picture 0: is of int; a picture is a path, bytes, an open binary file, a Pillow image or "),
    (None, TypeError, "the picture: is of NoneType; a picture is a path, bytes, an open binary file, a Pillow image "),
]  # fmt: skip


@pytest.mark.parametrize(("picture", "kind", "said"), NO_PICTURES, ids=lambda value: str(value)[:20])
def test_what_is_no_picture_is_told_in_our_words(model, tmp_path, monkeypatch, picture, kind, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "noper.jpg").touch()
    with pytest.raises(kind) as refused:
        model(picture)
    assert str(refused.value).startswith(said)


def test_a_device_or_a_folder_that_is_not_there_is_refused_at_the_start(
    model, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        PipelineError, match=r'^device="cuda": torch \S+ sees no GPU here; write device="cpu", or "auto"$'
    ):
        Predictor.load(finished, device="cuda")
    with pytest.raises(PipelineError, match=r"""^device='gpu': write device="auto", "cpu" or "cuda"$"""):
        Predictor.load(finished, device="gpu")
    with pytest.raises(CheckpointError, match=r"/y: there is no such folder; "):
        Predictor.load(finished.parent / "y")
    said = r'x\.yaml: is a spec; its results are loaded: Predictor\.load\("\S+experiments/x"\)$'
    with pytest.raises(CheckpointError, match=said):
        Predictor.load(finished.parent / "x.yaml")
    said = r'y\.yaml: is a spec; .*Predictor\.load\("y"\); run `make grid SPEC=y\.yaml` first$'
    with pytest.raises(CheckpointError, match=said):
        Predictor.load("y.yaml")
    monkeypatch.setattr(torch.export, "export", None)  # nothing is exported before
    with pytest.raises(
        PipelineError, match=r"m\.onnx: the folder \S+/none is not there; make it, or write another path$"
    ):
        model.export(tmp_path / "none" / "m.onnx")


def test_whatever_decoding_raises_names_the_picture(model, tmp_path, monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr("pipeline.predictor.pictures.decode", fails)
    (tmp_path / "im.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"im\.jpg: cannot be decoded: needs more memory than there is"):
        model(tmp_path / "im.jpg")


def test_a_damaged_member_of_an_archive_is_named(model, drawn_zip, tmp_path):
    body = bytearray(drawn_zip.test.read_bytes())
    with zipfile.ZipFile(drawn_zip.test) as archive:
        first = min((e for e in archive.infolist() if e.filename.endswith(".jpg")), key=lambda e: e.filename)
    body[first.header_offset + 300] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(body)
    with pytest.warns(UserWarning, match=rf"{first.filename}: cannot be decoded: Bad CRC-32"):
        assert len(list(model.folder(tmp_path / "a.zip"))) == 39


def test_the_range_of_the_training_set_is_kept(model, monkeypatch):
    grey_HW = np.linspace(0, 4095, 32 * 32).reshape(32, 32).astype(np.uint16)
    assert model.preprocessing["range"] is None
    assert pixels(model, Image.fromarray(grey_HW)).max() == 15
    monkeypatch.setitem(model.preprocessing, "range", (0, 4095))
    assert pixels(model, Image.fromarray(grey_HW)).max() == 255
