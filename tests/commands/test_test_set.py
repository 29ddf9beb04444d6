"""The test set beside the training set: its log, and its pictures that training has too."""

import tempfile
from pathlib import Path

import pytest
from PIL import Image

from jobs.planning.overlaps import with_own_test
from jobs.planning.plan import make_plan
from jobs.planning.tasks import overlap_task
from jobs.stages import EXIT_FAILED, decode, encode, run_task
from pipeline.data.packed import PackedSet
from pipeline.data.wrangle import wrangle
from pipeline.spec.reading import read_spec
from pipeline.storage.jsonl import read_jsonl
from tests.cells import jobs, project
from tests.conftest import data_spec, encoded, jpeg, write_zip


def test_the_log_of_each_packed_set_has_its_own_name(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip)
    status, printed = jobs("wrangle", spec, cwd=tmp_path)
    assert status == 0, printed
    logs = {path.name: path.read_text() for path in (tmp_path / "experiments/x/logs").iterdir()}
    packed = {path.name.rsplit("-", 2)[0]: path.name for path in (tmp_path / "data/packed").iterdir()}
    training = next(text for name, text in logs.items() if name.startswith(f"wrangle-{packed['drawn']}-"))
    assert "240 images" in training
    assert "split: train 192, validation 48" in training
    assert "40 images" in logs[f"wrangle-{packed['drawn-test']}.txt"]


def photos_project(tmp_path, test_files, text="", *, test="", split="{method: ordered}"):
    """12 photographs, a test zip of these files, and a spec of one small cell."""
    files = {f"images/im{i}.jpg": jpeg(i) for i in range(1, 13)}
    files["annotations/dog.txt"] = "".join(f"{i}\n" for i in range(1, 12))
    write_zip(tmp_path / "photos.zip", files)
    labelled = next(iter(test_files), "").removesuffix(".jpg")[2:]
    write_zip(tmp_path / "test.zip", {**test_files, "annotations/dog.txt": f"{labelled}\n"})
    spec = tmp_path / "experiments" / "x.yaml"
    spec.parent.mkdir()
    own = f"source: test.zip, images: 'im{{id}}.jpg', labels: {{format: id_lists}}{test}"
    spec.write_text(
        f"data:\n  source: photos.zip\n  images: images/im{{id}}.jpg\n  size_px: 16\n  split: {split}\n"
        f"  test: {{{own}}}\n"
        f"train: {{image_px: 16, epochs: 1, batch_size: 4, model: {{name: cnn2}}}}\n{text}\n"
    )
    return spec


COPIES = {"im7.jpg": jpeg(3), "im8.jpg": jpeg(12), "im9.jpg": jpeg(100)}


@pytest.mark.parametrize("verb", ["plan", "grid", "submission", "wrangle"])
def test_copied_files_are_refused_before_anything_is_packed(tmp_path, verb):
    spec = photos_project(tmp_path, COPIES)
    status, printed = jobs(verb, spec, cwd=tmp_path)
    assert status == 2
    assert "error: data.test: 2 of its 3 images are also in training or validation\n" in printed
    assert "  test.zip: im7.jpg equals photos.zip: im3.jpg\n" in printed
    assert "`data.test.overlap: allow`" in printed
    assert not (tmp_path / "data" / "packed").exists()


@pytest.fixture(scope="module")
def same_pixels():
    """A PNG of the pixels that packing makes of im3.jpg, at its packed size."""
    with tempfile.TemporaryDirectory() as name:
        photos = write_zip(Path(name) / "p.zip", {"im3.jpg": jpeg(3), "annotations/dog.txt": "3\n"})
        data = data_spec(photos, images="im{id}.jpg", size_px=16)
        pixels = PackedSet.open(wrangle(data, Path(name) / "data", workers=1)).gather([0])[0]
    return encoded(Image.fromarray(pixels), "PNG")


@pytest.mark.parametrize("verb", ["wrangle", "grid", "submission"])
def test_equal_pixels_are_refused_once_packed_and_before_any_training(tmp_path, same_pixels, verb):
    spec = photos_project(tmp_path, {"im1.jpg": jpeg(100), "im2.jpg": same_pixels})
    assert jobs("plan", spec, cwd=tmp_path)[0] == 0
    for again in (verb, "plan"):
        status, printed = jobs(again, spec, cwd=tmp_path)
        assert status == 2, printed
        assert "  test.zip: im2.jpg equals photos.zip: im3.jpg (training)\n" in printed
        assert printed.count("error: ") == 1
    assert not list(tmp_path.glob("experiments/x/*/manifest.json"))


def test_without_a_common_picture_nothing_is_said(tmp_path):
    spec = photos_project(tmp_path, {"im1.jpg": jpeg(100)})
    for verb in ("plan", "wrangle", "plan"):
        status, printed = jobs(verb, spec, cwd=tmp_path)
        assert status == 0, printed
        assert "data.test.overlap" not in printed


def test_where_the_split_decides_a_plan_says_so_and_wrangle_looks_again(tmp_path):
    split = "{method: ranges, train: 1-4, validation: 5-11}"
    spec = photos_project(tmp_path, {"im8.jpg": jpeg(12)}, split=split)
    status, printed = jobs("plan", spec, cwd=tmp_path)
    assert status == 0, printed
    assert "note: data.test: 1 of its 1 images are files of photos.zip too; whether they are used" in printed
    assert jobs("wrangle", spec, cwd=tmp_path)[0] == 0
    assert "data.test.overlap" not in jobs("plan", spec, cwd=tmp_path)[1]
    used = "data.split={method: ranges, train: 1-4, validation: 5-12}"
    status, printed = jobs("wrangle", spec, "--set", used, cwd=tmp_path)
    assert status == 2
    assert "  test.zip: im8.jpg equals photos.zip: im12.jpg (validation)\n" in printed


def test_allowed_ones_are_named_by_plan_and_wrangle(tmp_path):
    spec = photos_project(tmp_path, COPIES, test=", overlap: allow")
    for verb in ("plan", "wrangle", "plan", "doctor"):
        status, printed = jobs(verb, spec, cwd=tmp_path)
        assert status == 0 or verb == "doctor", printed
        assert "data.test: 2 of its 3 images are also in training or validation\n" in printed
        assert "  test.zip: im7.jpg equals photos.zip: im3.jpg" in printed


def test_the_stage_of_a_cluster_refuses_what_is_not_allowed(tmp_path, capsys):
    spec = photos_project(tmp_path, COPIES, test=", overlap: allow")
    assert jobs("wrangle", spec, cwd=tmp_path)[0] == 0
    for setting, expected in (("allow", 0), ("refuse", EXIT_FAILED)):
        plan = make_plan(read_spec(spec, [f"data.test.overlap={setting}"]))
        (pair,) = with_own_test(plan, plan.datasets)
        task = decode(encode(overlap_task(*pair)))
        assert run_task(task) == expected
        printed = capsys.readouterr()
        assert "im7.jpg equals photos.zip: im3.jpg (training)" in (printed.err if expected else printed.out)


@pytest.mark.slow
def test_allowed_ones_stand_beside_the_test_score(tmp_path):
    spec = photos_project(tmp_path, COPIES, test=", overlap: allow")
    status, printed = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, printed
    assert "  the true labels of these images are known: f1_micro " in printed
    said = "2 of 3 test images are in training or validation too: im7.jpg = im3.jpg, im8.jpg = im12.jpg"
    assert f"  note: {said}" in printed
    (event,) = [e for e in read_jsonl(tmp_path / "experiments/x/ledger.jsonl") if e["event"] == "submission"]
    assert event["test"]["f1_micro"] >= 0
    assert event["overlap"]["images"] == 2
    assert event["overlap"]["first"][0] == ["im7.jpg", "im3.jpg", "training"]


@pytest.mark.slow
def test_the_test_part_of_a_split_is_not_compared(tmp_path):
    spec = photos_project(tmp_path, {}, split="{method: ordered, validation: 0.25, test: 0.25}")
    spec.write_text("\n".join(line for line in spec.read_text().splitlines() if "  test:" not in line))
    status, printed = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, printed
    assert "3 images x 1 labels" in printed
    assert "overlap" not in printed
