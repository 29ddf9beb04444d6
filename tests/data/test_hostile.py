"""Hostile and broken data: a clear error or a stated behaviour each, and nothing written outside `data/`."""

import io
import json
import os
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import labels as labels_module
from pipeline.data import sources as sources_module
from pipeline.data.decoding import MAX_PIXELS
from pipeline.data.images import list_images
from pipeline.data.labels import read_labels
from pipeline.data.packed import PackedSet
from pipeline.data.sources import open_source
from pipeline.data.splits import make_split, read_split, write_split
from pipeline.data.wrangle import wrangle
from pipeline.errors import CheckpointError, DataError
from pipeline.evaluation.submission_file import check_submission, write_submission
from tests.conftest import data_spec, encoded, jpeg, write_zip

FORMATS = {
    "id_lists": {"format": "id_lists", "files": "labels.txt{label}"},
    "onehot_csv": {"format": "onehot_csv", "file": "labels.txt"},
    "list_csv": {"format": "list_csv", "file": "labels.txt"},
    "coco": {"format": "coco", "file": "labels.txt"},
    "jsonl": {"format": "jsonl", "file": "labels.txt"},
    "celeba": {"format": "celeba", "file": "labels.txt"},
    "voc": {"format": "voc", "files": "labels.txt{label}"},
    "vectors": {"format": "vectors", "files": "labels.txt{label}", "order": "labels.txt"},
}


def pack(source, tmp_path, **more):
    """WrangleTask in `tmp_path/data`; all else under `tmp_path` must stay as it was."""
    before = everything(tmp_path)
    if "labels" not in more:
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / "dog.txt").write_text("im1.jpg\nim2.jpg\nimother.jpg\n")
        more["labels"] = {"format": "id_lists", "files": "{label}.txt", "source": str(tmp_path / "labels")}
        more["set_aside"] = {"undecodable": 1.0, "unknown_references": 1.0}
        before = everything(tmp_path)
    spec = data_spec(
        source, **{"images": "im{id}.jpg", "size_px": 8, "set_aside": {"undecodable": 0.5}, **more}
    )
    try:
        return PackedSet.open(wrangle(spec, tmp_path / "data", workers=1)), spec
    finally:
        assert everything(tmp_path) == before


def everything(folder):
    return {
        path: path.lstat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and "data" not in path.relative_to(folder).parts
    }


def report(packed):
    return json.loads((packed.path / "wrangle_report.json").read_text())


LIST = "annotations/{label}.txt"


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_climb_out_are_written_nowhere(tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    files = {"../outside/im1.jpg": jpeg(1), f"{outside}/im2.jpg": jpeg(2), "a/../../outside/im3.jpg": jpeg(3)}
    path = tmp_path / f"evil.{kind}"
    if kind == "zip":
        write_zip(path, files)
    else:
        with tarfile.open(path, "w") as archive:
            for name, body in files.items():
                body = body.encode() if isinstance(body, str) else body
                entry = tarfile.TarInfo(name)
                entry.size = len(body)
                archive.addfile(entry, io.BytesIO(body))
    packed, _ = pack(path, tmp_path)
    assert packed.ids == (
        "2",
    )  # a part that begins with a dot makes a file hidden; an absolute name is a name
    assert list(outside.iterdir()) == []


def test_a_zip_bomb_is_set_aside_by_what_it_says_it_inflates_to(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "MAX_MEMBER_BYTES", 1_000_000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("im1.jpg", bytes(50_000_000))
    with pytest.raises(OSError, match=r"is 0.1 GB large, more than 0.0 GB"):
        open_source(path).read("im1.jpg")
    archive = zipfile.ZipFile(path)
    assert archive.getinfo("im1.jpg").compress_size < 100_000


def test_a_zip_that_lies_about_its_sizes_gives_no_more_than_it_says(tmp_path):
    path = write_zip(tmp_path / "lies.zip", {"im1.jpg": bytes(1000), "im2.jpg": jpeg(2)})
    body = path.read_bytes().replace(struct.pack("<II", 1000, 1000), struct.pack("<II", 1000, 10))
    path.write_bytes(body)
    with pytest.raises(sources_module.READ_ERRORS):
        open_source(path).read("im1.jpg")


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "MAX_MEMBERS", 3)
    with pytest.raises(DataError, match=r"a.zip: holds 4 files, more than 3; divide it"):
        open_source(write_zip(tmp_path / "a.zip", {f"im{i}.jpg": b"" for i in range(4)}))


def png_of(width, height):
    """A PNG that says it is so large, in a few hundred bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_images_of_one_pixel_are_taken_and_of_400_million_set_aside(tmp_path):
    one = encoded(Image.new("RGB", (1, 1), "red"), "PNG")
    files = {"im1.jpg": one, "im2.jpg": jpeg(2), "im3.jpg": png_of(20_000, 20_000)}
    packed, _ = pack(write_zip(tmp_path / "a.zip", files), tmp_path)
    assert packed.ids == ("1", "2")
    assert (packed.gather([0]) == [255, 0, 0]).all()
    (reason,) = report(packed)["undecodable"]["examples"]
    assert reason.startswith("im3.jpg: Image size (400000000 pixels) exceeds limit of")
    assert MAX_PIXELS < 20_000**2


def test_links_are_followed_and_circles_and_pipes_end_nothing(tmp_path):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    (folder / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "im1.jpg").write_bytes(jpeg(1))
    (elsewhere / "im2.jpg").write_bytes(jpeg(2))
    (folder / "there").symlink_to(elsewhere)
    (folder / "deep" / "round").symlink_to(folder)
    (folder / "im3.jpg").symlink_to("/etc/passwd")
    os.mkfifo(folder / "im4.jpg")
    packed, _ = pack(folder, tmp_path)
    assert packed.ids == ("1", "2")
    reasons = sorted(report(packed)["undecodable"]["examples"])
    assert reasons == ["im3.jpg: not an image file that Pillow knows", "im4.jpg: not a regular file"]


@pytest.mark.parametrize(
    "name", ["a,b", 'say "x"', "two\nlines", "tab\there", "ünï", "x" * 200, "=1+1", "' OR 1"]
)
def test_any_name_survives_index_split_and_submission(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", {f"im{name}.jpg": jpeg(1), "imother.jpg": jpeg(2)})
    packed, _ = pack(path, tmp_path)
    assert set(packed.ids) == {name, "other"}
    out = tmp_path / "data" / "submission.csv"
    decisions = np.array([[1, 0], [0, 1]], np.uint8)
    write_submission(out, packed.names, ["a", name], decisions)
    check_submission(out, packed.names, ["a", name], decisions)


def test_names_that_are_no_text_are_named(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / os.fsdecode(b"im\xff.jpg")).write_bytes(jpeg(1))
    with pytest.raises(DataError, match=r"is not UTF-8; rename it"):
        list_images(open_source(folder), "im{id}.jpg")


# ---------------------------------------------------------------- labels


def labelled(tmp_path, text, **labels):
    files = {f"im{i}.jpg": jpeg(i) for i in range(1, 5)} | {"labels.csv": text}
    return pack(write_zip(tmp_path / "a.zip", files), tmp_path, labels={"file": "labels.csv", **labels})


def test_100_000_labels_are_more_than_the_stated_limit(tmp_path):
    header = ",".join(["id", *(f"l{i}" for i in range(100_000))])
    with pytest.raises(
        DataError, match=rf"labels.csv: holds 100000 labels, more than {labels_module.MAX_LABELS}"
    ):
        labelled(tmp_path, f"{header}\n1{',1' * 100_000}\n", format="onehot_csv")
    files = {f"annotations/l{i}.txt": "1\n" for i in range(labels_module.MAX_LABELS + 1)}
    source = open_source(write_zip(tmp_path / "b.zip", files))
    with pytest.raises(DataError, match=r"is one of 5001 label files, more than 5000"):
        read_labels(source, data_spec("x", labels={"format": "id_lists", "files": LIST}).labels, [])


def test_one_label_is_enough_and_none_is_not(tmp_path):
    packed, spec = labelled(tmp_path, "id,dog\n1,1\n2,0\n3,1\n4,0\n", format="onehot_csv")
    assert packed.labels == ("dog",)
    assert len(make_split(spec, packed).validation) == 1
    with pytest.raises(DataError, match=r"holds no label at all"):
        labelled(tmp_path, "id,labels\n1,\n2,\n3,\n4,\n", format="list_csv")


def test_a_label_without_positives_and_a_set_that_is_all_blank_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no image has the label 'cat'; nothing can be learnt"):
        labelled(tmp_path, "id,dog,cat\n1,1,0\n2,0,0\n3,1,0\n4,0,0\n", format="onehot_csv")
    with pytest.raises(DataError, match=r"no image has the label 'dog'"):
        labelled(tmp_path, "id,dog\n1,0\n2,0\n3,0\n4,0\n", format="onehot_csv")


def test_duplicate_ids_are_refused(tmp_path):
    error = r"(?s)1 images have rows that differ.*im1.jpg: \S+:2 \(1: dog\) and \S+:3 \(1: no label\)"
    with pytest.raises(DataError, match=error):
        labelled(tmp_path, "id,dog\n1,1\n1,0\n3,1\n4,0\n", format="onehot_csv")


def test_label_ids_beyond_the_images_are_counted_against_the_allowance(tmp_path):
    with pytest.raises(DataError, match=r"3 of 7 references of the label file name no image"):
        labelled(
            tmp_path, "id,dog\n1,1\n2,0\n3,0\n4,0\n7,1\n8,1\n99999999999999999999,1\n", format="onehot_csv"
        )


def test_a_single_image_cannot_be_split(tmp_path):
    packed, spec = pack(write_zip(tmp_path / "a.zip", {"im1.jpg": jpeg(1)}), tmp_path)
    with pytest.raises(DataError, match=r"no image is left for \w+ of 1; correct data.split"):
        make_split(spec, packed)


def test_nested_without_end_is_no_coco(tmp_path):
    with pytest.raises(DataError, match=r"labels.csv: not a COCO instances file"):
        labelled(tmp_path, "[" * 100_000, format="coco")


# ---------------------------------------------------------------- any bytes at all


anything = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
csv_like = st.text(st.sampled_from('id,dog;"\n\r01 \x00é\ufeff|'), max_size=80).map(str.encode)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["images", "categories", "annotations", "id", "name", "file_name", "image_id", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
).map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("format", FORMATS)
@anything
@given(body=st.binary(max_size=200) | csv_like | json_like)
def test_a_label_file_is_read_or_refused_in_words(tmp_path, format, body):
    source = open_source(write_zip(tmp_path / "a.zip", {"labels.txt": body, "labels.txtdog": body}))
    try:
        table = read_labels(source, data_spec("x", labels=FORMATS[format]).labels, [])
    except DataError:
        return
    finally:
        source.close()
    assert 0 < len(table.labels) == len(set(table.labels))
    assert all(0 <= row < len(table.references) for row in table.row_P)
    assert all(0 <= label < len(table.labels) for label in table.label_P)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@anything
@given(data=st.data())
def test_an_archive_with_any_damage_is_read_or_refused_in_words(tmp_path, suffix, data):
    path = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        write_zip(path, {"im1.jpg": b"one" * 20, "im2.jpg": b"two" * 20})
    else:
        with tarfile.open(path, "w") as archive:
            for name in ("im1.jpg", "im2.jpg"):
                entry = tarfile.TarInfo(name)
                entry.size = 60
                archive.addfile(entry, io.BytesIO(name[:3].encode() * 20))
    body = bytearray(path.read_bytes()[:4000])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body)
    try:
        source = open_source(path)
    except DataError:
        return
    try:
        for _, member in [(image.id, image.member) for image in list_images(source, "im{id}.jpg").chosen]:
            source.read(member)
    except (DataError, *sources_module.READ_ERRORS):
        pass
    finally:
        source.close()


@anything
@given(data=st.data())
def test_a_split_with_any_damage_is_read_as_it_was_or_refused(drawn, tmp_path, data):
    spec, folder, _ = drawn
    packed = PackedSet.open(folder, verify=False)
    split = make_split(spec, packed)
    path = tmp_path / "split.json"
    write_split(path, split, packed)
    body = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(body)
    try:
        found = read_split(path)
    except DataError:
        return
    assert (found.train == split.train).all()
    assert (found.validation == split.validation).all()


@anything
@given(body=st.binary(max_size=300))
def test_no_bytes_are_a_checkpoint_by_chance(tmp_path, body):
    from pipeline.models.checkpoint import load_checkpoint

    (tmp_path / "c.pt").write_bytes(body)
    with pytest.raises(CheckpointError, match=r"c.pt: is damaged"):
        load_checkpoint(tmp_path / "c.pt")
