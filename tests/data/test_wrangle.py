"""From images and labels to a packed set: whole or not at all, with what was wrong in the report."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from pipeline.data.decoding import Preparation, decode
from pipeline.data.index import Index
from pipeline.data.layout import is_complete, packed_identity, packed_path
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_files import PixelFiles
from pipeline.data.reading import DataRead, Problems
from pipeline.data.references import ImageRef
from pipeline.data.wrangle import wrangle
from pipeline.data.wrangle_report import _ROWS, build_report
from pipeline.errors import DataError, PipelineError
from tests.cells import PATIENCE_S
from tests.conftest import ROOT, data_spec, jpeg, write_zip


def pack(source, root, **settings):
    data = data_spec(source, **({"images": "images/im{id}.jpg", "size_px": 16} | settings))
    return wrangle(data, root / "data", workers=1)


def report_of(folder):
    return json.loads((folder / "wrangle_report.json").read_text())


def photos_with(photos, tmp_path, **files):
    """The photos, some files replaced or added (None: left out)."""
    with zipfile.ZipFile(photos) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents |= {name.replace("__", "/"): body for name, body in files.items()}
    return write_zip(
        tmp_path / "changed.zip", {name: body for name, body in contents.items() if body is not None}
    )


def test_pixels_labels_and_index_line_up(photos, tmp_path):
    packed = PackedSet.open(pack(photos, tmp_path))
    assert packed.ids == tuple(str(i) for i in range(1, 13))
    assert packed.names[9] == "im10.jpg"
    assert packed.labels == ("dog", "tree")
    assert packed.labels_NK[:, 0].tolist() == [1] * 6 + [0] * 6
    assert packed.labels_NK[:, 1].tolist() == [0] * 3 + [1] * 6 + [0] * 3
    pixels_NHWC = packed.gather(np.array([11, 0]))
    np.testing.assert_array_equal(pixels_NHWC[0], decode(jpeg(12), Preparation(16, "squash")))
    np.testing.assert_array_equal(pixels_NHWC[1], decode(jpeg(1), Preparation(16, "squash")))


def test_it_reports_what_it_reads_and_packs(photos, tmp_path, told):
    pack(photos, tmp_path)
    reads = [(f"reading {photos.name}, image", number, 12) for number in range(1, 13)]
    said = [(state.doing, state.done, state.total) for state in told]
    assert said == [*reads, ("packing image", 12, 12), ("writing the packed set", 0, 0)]


def test_a_set_of_several_shards_reads_like_one(photos, tmp_path, monkeypatch):
    images_NHWC = PackedSet.open(pack(photos, tmp_path / "one")).gather(range(12))
    monkeypatch.setattr("pipeline.data.pixel_files.FILE_BYTES", 5 * 3 * 16 * 16)
    folder = tmp_path / "many"
    folder.mkdir()
    for files, kept in ((3, list(range(12))), (2, [0, 2, 3, 5, 7, 8, 9, 10])):
        pixels = PixelFiles(folder, 16, writable=True)
        pixels.write(0, images_NHWC[:4])
        pixels.write(4, images_NHWC[4:])
        pixels.close_gaps(kept)
        pixels.finish(len(kept))
        assert sorted(path.name for path in folder.iterdir()) == [f"images-00{i}.npy" for i in range(files)]
        stored = np.concatenate([np.load(folder / name) for name in pixels.names(len(kept))])
        np.testing.assert_array_equal(stored, images_NHWC[kept])
    parts = PixelFiles(folder, 16)
    np.testing.assert_array_equal(parts.read([7, 0, 5, 4, 4]), images_NHWC[[10, 0, 8, 7, 7]])
    (folder / "images-001.npy").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"images-001.npy: ends early"):
        PixelFiles(folder, 16).read([6])


def test_a_folder_and_a_zip_of_the_same_images_are_the_same_set(photos, tmp_path):
    with zipfile.ZipFile(photos) as archive:
        archive.extractall(tmp_path / "folder")
    cache = tmp_path / "cache"
    settings = {"images": "images/im{id}.jpg", "size_px": 16}
    from_zip = packed_identity(data_spec(photos, **settings), cache)
    from_folder = packed_identity(data_spec(tmp_path / "folder", **settings), cache)
    assert from_zip.digest == from_folder.digest


def test_what_changes_pixels_or_labels_changes_the_identity(photos, tmp_path):
    def identity(source, **settings):
        return packed_identity(
            data_spec(source, **({"images": "images/im{id}.jpg"} | settings)), tmp_path / "c"
        ).digest

    base = identity(photos)
    (tmp_path / "some.txt").write_text("1\n2\n3\n4\n")
    changed = [
        identity(photos, size_px=64),
        identity(photos, resize="crop"),
        identity(photos, interpolation="bicubic"),
        identity(photos, image_list=str(tmp_path / "some.txt")),
        identity(photos, images="{id}.jpg"),
        identity(photos_with(photos, tmp_path, **{"images__im1.jpg": jpeg(99)})),
        identity(photos_with(photos, tmp_path, **{"annotations__dog.txt": None})),
        identity(photos_with(photos, tmp_path, **{"annotations__dog.txt": "1\n"})),
    ]
    assert len({base, *changed}) == 9
    same = [identity(photos, split={"method": "random"}), identity(photos, set_aside={"undecodable": 0.5})]
    assert set(same) == {base}


def test_the_names_of_labels_are_part_of_the_identity(tmp_path):
    images = {f"im{i}.jpg": jpeg(i) for i in (1, 2)}
    source = write_zip(tmp_path / "a.zip", images | {"l/lbl_dog.txt": "1\n", "l/lbl_cat.txt": "2\n"})
    moved = write_zip(tmp_path / "b.zip", images | {"l/cat/ids.txt": "1\n"})
    again = write_zip(tmp_path / "c.zip", images | {"l/bat/ids.txt": "1\n"})

    def identity(path, files):
        data = data_spec(path, labels={"format": "id_lists", "files": files})
        return packed_identity(data, tmp_path / "cache").digest

    assert identity(source, "{label}.txt") != identity(source, "lbl_{label}.txt")
    assert identity(moved, "l/{label}/ids.txt") != identity(again, "l/{label}/ids.txt")


def test_a_blank_line_in_an_image_list_changes_nothing(photos, tmp_path):
    digests = set()
    for text in ("1\n2\n", "1\n\n2\n\n"):
        (tmp_path / "list.txt").write_text(text)
        data = data_spec(photos, images="images/im{id}.jpg", image_list=str(tmp_path / "list.txt"))
        digests.add(packed_identity(data, tmp_path / "cache").digest)
    assert len(digests) == 1


def test_a_disk_that_could_not_be_read_once_is_asked_again(tmp_path, monkeypatch):
    source = tmp_path / "photos"
    (source / "annotations").mkdir(parents=True)
    (source / "annotations" / "dog.txt").write_text("1\n")
    for i in (1, 2):
        (source / f"im{i}.jpg").write_bytes(jpeg(i))

    def unreadable(self, member):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.sources.Source.checksum", unreadable)
        ill = packed_identity(data_spec(source), tmp_path / "cache")
    well = packed_identity(data_spec(source), tmp_path / "cache")
    assert ill != well
    assert packed_identity(data_spec(source), tmp_path / "cache") == well


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    source = tmp_path / "photos"
    (source / "annotations").mkdir(parents=True)
    (source / "annotations" / "dog.txt").write_text("1\n2\n")
    for i in (1, 2):
        (source / f"im{i}.jpg").write_bytes(jpeg(i))
    (source / "im3.jpg").symlink_to("nowhere.jpg")
    folder = pack(source, tmp_path, images="im{id}.jpg", set_aside={"undecodable": 0.5})
    assert "im3.jpg: [Errno 2]" in report_of(folder)["undecodable"]["examples"][0]


def test_labels_that_name_no_image_at_all_say_what_images_are_called(photos, tmp_path):
    source = photos_with(photos, tmp_path, **{"y.csv": "ids,dog\nphoto_1,1\nphoto_2,0\n"})
    error = r"y.csv: names none of the images: it has 'photo_1', images are called '1' \(images/im1.jpg\)"
    with pytest.raises(DataError, match=error):
        pack(source, tmp_path, labels={"format": "onehot_csv", "file": "y.csv"})


def test_what_a_killed_wrangle_left_goes_and_what_another_writes_stays(photos, tmp_path):
    data = data_spec(photos, images="images/im{id}.jpg", size_px=16)
    identity = packed_identity(data, tmp_path / "cache")
    target = packed_path(tmp_path / "data", identity)
    left, fresh = (target.with_name(f".{target.name}.{end}") for end in ("killed", "working"))
    for path in (left, fresh):
        path.mkdir(parents=True)
    os.utime(left, (1, 1))
    assert pack(photos, tmp_path) == target
    assert {path.name for path in target.parent.iterdir()} == {target.name, fresh.name}


def test_a_second_wrangle_does_nothing_and_a_damaged_set_is_made_anew(photos, tmp_path):
    folder = pack(photos, tmp_path)
    before = (folder / "dataset.json").stat().st_mtime_ns
    assert pack(photos, tmp_path) == folder
    assert (folder / "dataset.json").stat().st_mtime_ns == before
    with (folder / "images-000.npy").open("r+b") as file:
        file.truncate(300)
    pack(photos, tmp_path)
    PackedSet.open(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


@pytest.mark.parametrize(
    "name", ["images-000.npy", "labels.npy", "index.npz", "index.csv", "wrangle_report.json"]
)
def test_a_flipped_bit_is_found_when_the_set_is_opened(photos, tmp_path, name):
    folder = pack(photos, tmp_path)
    body = bytearray((folder / name).read_bytes())
    body[-1] ^= 1
    (folder / name).write_bytes(body)
    with pytest.raises(DataError, match=f"{name}: is damaged"):
        PackedSet.open(folder)


# ---------------------------------------------------------------- bad input


def test_bad_images_are_set_aside_with_the_reason_and_the_rest_lines_up(photos, tmp_path):
    bad = {"images__im2.jpg": jpeg(2)[:-100], "images__im5.jpg": "this is no picture", "images__im7.jpg": b""}
    folder = pack(photos_with(photos, tmp_path, **bad), tmp_path, set_aside={"undecodable": 0.3})
    packed = PackedSet.open(folder)
    assert packed.ids == ("1", "3", "4", "6", "8", "9", "10", "11", "12")
    assert packed.labels_NK[:, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(packed.gather([4])[0], decode(jpeg(8), Preparation(16, "squash")))
    report = report_of(folder)
    assert report["undecodable"]["count"] == 3
    reasons = " | ".join(report["undecodable"]["examples"])
    assert "images/im2.jpg: " in reasons
    assert "truncated" in reasons
    assert "images/im5.jpg: not an image file that Pillow knows" in reasons
    assert report["unknown_references"]["count"] == 0


def test_more_bad_images_than_allowed_stop_wrangle_and_nothing_is_left(photos, tmp_path):
    source = photos_with(photos, tmp_path, **{"images__im2.jpg": jpeg(2)[:-100]})
    with pytest.raises(
        DataError, match=r"1 of 12 images cannot be decoded, more than data.set_aside.undecodable 0.01 allows"
    ):
        pack(source, tmp_path)
    assert list((tmp_path / "data" / "packed").iterdir()) == []


def test_an_image_whose_bytes_do_not_match_the_archive_is_set_aside(photos, tmp_path):
    body = bytearray(photos.read_bytes())
    body[body.index(jpeg(3)) + 400] ^= 0xFF
    photos.write_bytes(body)
    report = report_of(pack(photos, tmp_path, set_aside={"undecodable": 0.1}))
    assert report["undecodable"]["examples"] == ["images/im3.jpg: Bad CRC-32 for file 'images/im3.jpg'"]


def test_labels_of_images_that_are_not_there(photos, tmp_path):
    source = photos_with(photos, tmp_path, **{"annotations__dog.txt": "1\n2\n3\n4\n5\n77\n"})
    with pytest.raises(
        DataError, match=r"(?s)1 of 10 references of the label file name no image.*dog.txt: 77"
    ):
        pack(source, tmp_path)
    report = report_of(pack(source, tmp_path, set_aside={"unknown_references": 0.1}))
    (entry,) = report["unknown_references"]["examples"]
    assert entry.endswith("annotations/dog.txt: 77")


def test_an_empty_label_file_is_refused(photos, tmp_path):
    source = photos_with(photos, tmp_path, **{"annotations__cat.txt": "\n"})
    with pytest.raises(DataError, match=r"annotations/cat.txt: no image has the label 'cat'"):
        pack(source, tmp_path)


def test_images_without_a_row_in_the_csv_are_unknown_not_blank(photos, tmp_path):
    rows = "".join(f"im{i}.jpg,{i % 2}\n" for i in range(1, 12))
    source = photos_with(photos, tmp_path, **{"y.csv": "ids,odd\n" + rows})
    labels = {"format": "onehot_csv", "file": "y.csv"}
    with pytest.raises(DataError, match=r"1 of 12 images are not mentioned by the label file"):
        pack(source, tmp_path, labels=labels)
    folder = pack(source, tmp_path, labels=labels, set_aside={"without_row": 0.1})
    assert PackedSet.open(folder).ids == tuple(str(i) for i in range(1, 12))
    assert report_of(folder)["without_row"]["examples"] == ["images/im12.jpg"]


def test_a_list_takes_a_part_without_making_the_other_labels_unknown(photos, tmp_path):
    (tmp_path / "some.txt").write_text("7\n2\n")
    packed = PackedSet.open(pack(photos, tmp_path, image_list=str(tmp_path / "some.txt")))
    assert packed.ids == ("7", "2")
    assert packed.labels_NK.tolist() == [[0, 1], [1, 0]]


def test_the_report_counts_labels_pairs_blanks_and_twins(photos, tmp_path):
    source = photos_with(photos, tmp_path, **{"images__im12.jpg": jpeg(1)})
    report = report_of(pack(source, tmp_path))
    assert report["label_counts"] == {"dog": 6, "tree": 6}
    assert report["co_occurrence"] == {"dog": [6, 3], "tree": [3, 6]}
    assert report["negative_fraction"] == 0.25
    assert report["exact_duplicates"] == {"groups": 1, "examples": [["im1.jpg", "im12.jpg"]]}


def test_a_read_only_place_is_named_with_its_free_space(photos, tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(PipelineError, match=r"data/packed/photos-16px-\w+: cannot be written: .* GB free"):
        pack(photos, tmp_path)


_ON_FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from pipeline.data.reading import DataRead, Problems
from pipeline.data.references import ImageRef
from pipeline.data.wrangle import wrangle
from pipeline.data.wrangle_report import _ROWS, build_report
from pipeline.errors import PipelineError
from pipeline.spec import DataSpec
disk = Path({disk!r})
if __name__ == "__main__":
    subprocess.run(["mount", "-t", "tmpfs", "-o", {options!r}, "tmpfs", str(disk)], check=True)
    data = DataSpec.model_validate({{"source": {source!r}, "images": "images/im{{id}}.jpg", "size_px": 128}})
    try:
        wrangle(data, disk, workers=1)
    except PipelineError as error:
        print(error)
        print(sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if "packed/" in str(path)))
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-mr", "true"], capture_output=True).returncode != 0,
    reason="this system allows no mount of a small disk",
)
@pytest.mark.parametrize(
    ("options", "error"),
    [("size=256k", "No space left on device (0.0 GB free)"), ("ro", "Read-only file system")],
)
def test_a_full_or_read_only_disk_is_an_error_and_nothing_is_half_written(photos, tmp_path, options, error):
    (tmp_path / "disk").mkdir()
    script = tmp_path / "run.py"
    script.write_text(
        _ON_FULL_DISK.format(root=str(ROOT), disk=str(tmp_path / "disk"), source=str(photos), options=options)
    )
    done = subprocess.run(
        ["unshare", "-mr", sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=PATIENCE_S,
    )
    lines = [line for line in done.stdout.splitlines() if "images/s" not in line]
    assert f"cannot be written: {error}" in lines[0], done.stderr
    assert lines[1] == "[]"


def test_planning_digests_are_remembered_until_a_file_changes(photos, tmp_path, monkeypatch):
    data = data_spec(photos, images="images/im{id}.jpg")
    cache = tmp_path / "cache"
    first = packed_identity(data, cache)
    monkeypatch.setattr("pipeline.data.layout._checksum", lambda *_: pytest.fail("read again"))
    assert packed_identity(data, cache) == first
    os.utime(photos, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        packed_identity(data, cache)


def test_a_set_packed_under_another_name_is_found(photos, tmp_path):
    folder = pack(photos, tmp_path)
    renamed = photos.rename(tmp_path / "other-name.zip")
    identity = packed_identity(data_spec(renamed, images="images/im{id}.jpg", size_px=16), tmp_path / "c")
    assert packed_path(tmp_path / "data", identity) == folder
    assert is_complete(folder, identity.digest)


def test_the_shared_photographs(shared, tmp_path):
    """The real archive: 10,000 images, among them greyscale ones, and label counts as published."""
    (tmp_path / "some.txt").write_text("".join(f"{i}\n" for i in range(1, 401)))
    folder = pack(
        shared / "data/mirflickr-10k.zip", tmp_path, size_px=32, image_list=str(tmp_path / "some.txt")
    )
    report = report_of(folder)
    assert (report["packed"], report["undecodable"]["count"]) == (400, 0)
    assert len(report["label_counts"]) == 14
    assert 0.3 < report["negative_fraction"] < 0.6


def test_a_script_may_wrangle_at_its_top_level_without_starting_itself_again(tmp_path, photos):
    script = tmp_path / "mine.py"
    script.write_text(
        "from pathlib import Path\n"
        "print('began')\n"
        "from pipeline.data.wrangle import wrangle\n"
        "from pipeline.spec.reading import read_spec\n"
        f"print(wrangle(read_spec(Path({str(tmp_path / 'a.yaml')!r})).spec.data, Path('packed'), workers=2))\n"
    )
    (tmp_path / "a.yaml").write_text(
        f"data: {{source: {photos}, images: 'images/im{{id}}.jpg', size_px: 16}}\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("began") == 1


def labelled(labels_NK):
    """What the report looks at of a set with these labels."""
    count, labels = labels_NK.shape
    images = [ImageRef(str(i), f"{i}.jpg", f"{i}.jpg") for i in range(count)]
    names = [f"label{k}" for k in range(labels)]
    return DataRead(images, [], ["train"] * count, names, labels_NK, Problems(), merge_copies=False)


def test_label_pairs_are_counted_exactly_in_chunks(monkeypatch):
    monkeypatch.setattr("pipeline.data.wrangle_report._ROWS", 7)
    labels_NK = (np.random.default_rng(0).random((100, 5)) < 0.5).astype(np.uint8)
    wide_NK = labels_NK.astype(np.int64)
    together = build_report(labelled(labels_NK))["co_occurrence"]
    assert list(together.values()) == (wide_NK.T @ wide_NK).tolist()
    assert np.array(list(together.values())).dtype == np.int64


def test_label_pairs_of_a_chunk_are_below_what_float32_holds_exactly():
    assert 0 < _ROWS < 2**24
    whole_NK = np.ones((_ROWS + 3, 2), np.uint8)
    assert build_report(labelled(whole_NK))["co_occurrence"] == {
        "label0": [_ROWS + 3] * 2,
        "label1": [_ROWS + 3] * 2,
    }


def test_pairs_of_too_many_labels_are_left_out_and_said(monkeypatch):
    monkeypatch.setattr("pipeline.data.wrangle_report._PAIRED", 2)
    index = Index.of((str(i), str(i), str(i), "train", f"{i:040x}") for i in range(4))
    assert build_report(labelled(np.eye(4, 2, dtype=np.uint8)), index)["co_occurrence"] is not None
    report = build_report(labelled(np.eye(4, 3, dtype=np.uint8)), index)
    assert report["co_occurrence"] is None
    assert report["notes"] == ["label pairs are not counted: 3 labels, more than 2"]
