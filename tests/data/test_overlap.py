"""Test pictures that training has too, found by pixels once packed and by files before."""

import io

import pytest
from PIL import Image

from pipeline.data import overlap
from pipeline.data.layout import packed_identity, split_path
from pipeline.data.overlap import find_equal_files, find_overlap, judge, uses_every_image
from pipeline.data.packed import PackedSet
from pipeline.data.splits import make_split, write_split
from pipeline.data.wrangle import wrangle
from pipeline.errors import DataError
from tests.conftest import data_spec, encoded, jpeg, write_zip

PX = 32
TEST_LABELS = {"format": "id_lists", "files": "annotations/{label}.txt"}


def spec_with(photos, files, tmp_path, **settings):
    """The spec of the 12 photographs with a test zip of `files`."""
    names = {name if "/" in name else f"images/{name}": body for name, body in files.items()}
    test = write_zip(tmp_path / "test.zip", {**names, "annotations/dog.txt": "1\n"})
    own = {
        "source": str(test),
        "images": settings.pop("test_images", "images/im{id}.jpg"),
        "labels": TEST_LABELS,
    }
    own |= settings.pop("test", {})
    return data_spec(photos, images="images/im{id}.jpg", size_px=PX, test=own, **settings)


def packed(data, tmp_path):
    """(packed set, split file, packed test set)"""
    folder = wrangle(data, tmp_path / "data", workers=1)
    path = split_path(folder, data)
    opened = PackedSet.open(folder, verify=False)
    write_split(path, make_split(data, opened), opened)
    return folder, path, wrangle(data, tmp_path / "data", test=True, workers=1)


def in_png(body, size=PX):
    """The pixels of a picture as packing leaves them, in a lossless format."""
    picture = Image.open(io.BytesIO(body)).convert("RGB")
    return encoded(picture.resize((size, size)), "PNG")


def test_exact_copies_are_found_whatever_they_are_called(photos, tmp_path):
    data = spec_with(photos, {"im1.jpg": jpeg(100), "im7.jpg": jpeg(3), "im8.jpg": jpeg(12)}, tmp_path)
    found = find_overlap(*packed(data, tmp_path))
    assert (found.count, found.of) == (2, 3)
    assert found.pairs == (("im7.jpg", "im3.jpg", "training"), ("im8.jpg", "im12.jpg", "validation"))
    with pytest.raises(DataError) as refused:
        judge(data, found)
    text = str(refused.value)
    assert text.startswith("data.test: 2 of its 3 images are also in training or validation\n")
    assert "  test.zip: im7.jpg equals photos.zip: im3.jpg (training)\n" in text
    assert "`data.test.overlap: allow`" in text


def test_the_same_pixels_in_another_format_are_found(photos, tmp_path):
    folder, split, _ = packed(spec_with(photos, {"im1.jpg": jpeg(100)}, tmp_path), tmp_path)
    pixels = PackedSet.open(folder).gather([4])[0]
    png = encoded(Image.fromarray(pixels), "PNG")
    data = spec_with(
        photos, {"im1.png": in_png(jpeg(100)), "im2.png": png}, tmp_path, test_images="im{id}.png"
    )
    test = wrangle(data, tmp_path / "data", test=True, workers=1)
    found = find_overlap(folder, split, test)
    assert found.pairs == (("im2.png", "im5.jpg", "training"),)
    digests = tmp_path / "data" / "digests"
    ours, theirs = (packed_identity(data, digests, test=of).digest for of in (False, True))
    assert find_equal_files(digests, ours, theirs).count == 0


def test_without_a_common_picture_nothing_is_said(photos, tmp_path):
    data = spec_with(photos, {"im1.jpg": jpeg(100), "im2.jpg": jpeg(101)}, tmp_path)
    found = find_overlap(*packed(data, tmp_path))
    assert (found.count, found.of, found.pairs) == (0, 2, ())
    assert judge(data, found) is None


def test_allowed_ones_are_named_and_no_error(photos, tmp_path):
    files = {f"im{i}.jpg": jpeg(i) for i in range(1, 9)}
    data = spec_with(photos, files, tmp_path, test={"overlap": "allow"})
    found = find_overlap(*packed(data, tmp_path))
    said = judge(data, found)
    assert "8 of its 8 images" in said
    assert said.count(" equals ") == overlap.SHOWN
    assert "and 3 more" in said
    assert found.short().startswith(
        "8 of 8 test images are in training or validation too: im1.jpg = im1.jpg, "
    )
    assert found.short().endswith(", ...")


def test_pictures_of_no_split_or_of_its_test_part_do_not_count(photos, tmp_path):
    split = {"method": "ranges", "train": "1-4", "validation": "5-6", "test": "7-8"}
    files = {"im1.jpg": jpeg(7), "im2.jpg": jpeg(11), "im3.jpg": jpeg(6)}
    data = spec_with(photos, files, tmp_path, split=split)
    assert find_overlap(*packed(data, tmp_path)).pairs == (("im3.jpg", "im6.jpg", "validation"),)


def test_what_was_found_is_kept_for_this_split_alone(photos, tmp_path, monkeypatch):
    data = spec_with(photos, {"im1.jpg": jpeg(3)}, tmp_path)
    sets = packed(data, tmp_path)
    first = find_overlap(*sets)
    other = data.model_copy(update={"negatives": data.negatives.model_copy(update={"train": "drop"})})
    other_split = packed(other, tmp_path)[1]
    monkeypatch.setattr(overlap, "_index", lambda _: pytest.fail("read again"))
    assert find_overlap(*sets) == first
    with pytest.raises(pytest.fail.Exception, match="read again"):
        find_overlap(sets[0], other_split, sets[2])


def test_a_damaged_split_is_named(photos, tmp_path):
    sets = packed(spec_with(photos, {"im1.jpg": jpeg(3)}, tmp_path), tmp_path)
    sets[1].write_text("{}")
    with pytest.raises(DataError, match=r"cannot be compared with .*split-ordered.*run `make wrangle`"):
        find_overlap(*sets)


def test_before_packing_equal_files_are_found(photos, tmp_path):
    data = spec_with(photos, {"im1.jpg": jpeg(100), "im7.jpg": jpeg(3)}, tmp_path)
    digests = tmp_path / "data" / "digests"
    ours, theirs = (packed_identity(data, digests, test=test).digest for test in (False, True))
    for _ in range(2):  # also from what was kept
        found = find_equal_files(digests, ours, theirs)
        assert (found.count, found.of, found.pairs) == (1, 2, (("im7.jpg", "im3.jpg", ""),))
    assert find_equal_files(digests, ours, "0" * 64) is None


@pytest.mark.parametrize(
    ("settings", "sure"),
    [
        ({}, True),
        ({"split": {"method": "stratified", "validation": 0.3}}, True),
        ({"split": {"method": "random", "test": 0.1}}, False),
        ({"split": {"method": "ranges", "train": "1-9", "validation": "10-12"}}, False),
        ({"negatives": {"train": 0.5}}, False),
        ({"negatives": {"validation": "drop"}}, False),
        ({"labels": {"format": "onehot_csv", "file": "train.csv"}}, False),
        ({"labels": {"format": "folders"}}, True),
    ],
)
def test_when_a_spec_surely_uses_every_image(settings, sure):
    assert uses_every_image(data_spec("x.zip", **settings)) is sure


def test_sources_of_one_name_are_told_apart_by_their_folders(photos, tmp_path):
    data = spec_with(photos, {"im1.jpg": jpeg(3)}, tmp_path)
    moved = tmp_path / "other" / "photos.zip"
    data = data.model_copy(update={"test": data.test.model_copy(update={"source": str(moved)})})
    line = overlap.Overlap(1, 1, (("im1.jpg", "im3.jpg", "training"),)).named(data)
    assert line == f"  {moved}: im1.jpg equals {photos}: im3.jpg (training)"
