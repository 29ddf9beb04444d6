"""Folders and archives, read where they lie."""

import os
import random
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.images import list_images, natural_key
from pipeline.data.sources import fingerprint, match_members, open_source
from pipeline.errors import DataError
from tests.conftest import write_zip

FILES = {
    "top/im10.jpg": b"ten",
    "top/im9.jpg": b"nine",
    "top/notes.txt": b"text",
    "__MACOSX/top/._im9.jpg": b"x",
}


def as_folder(path, files):
    for name, body in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(body)
    return path


def as_tar(path, files):
    folder = as_folder(path.parent / (path.name + ".d"), files)
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=".")
    return path


@pytest.fixture(params=["folder", "zip", "tar"])
def source(request, tmp_path):
    make = {
        "folder": lambda: as_folder(tmp_path / "folder", FILES),
        "zip": lambda: write_zip(tmp_path / "a.zip", FILES),
        "tar": lambda: as_tar(tmp_path / "a.tar", FILES),
    }[request.param]
    opened = open_source(make())
    yield opened
    opened.close()


def test_every_kind_of_source_gives_the_same_members_bytes_and_checksums(source):
    assert sorted(source.members) == sorted(FILES)
    assert all(source.read(name) == body for name, body in FILES.items())
    assert source.checksum("top/im9.jpg") == (4, zlib.crc32(b"nine"))


def test_images_come_in_natural_order_without_naming_the_top_folder(source):
    images = list_images(source, "im{id}.jpg").chosen
    assert [image.id for image in images] == ["9", "10"]
    assert [image.name for image in images] == ["im9.jpg", "im10.jpg"]


def test_an_image_list_sets_the_order_and_names_what_is_missing(source, tmp_path):
    (tmp_path / "list.txt").write_text("10\nim9.jpg\n\n77\n")
    images = list_images(source, "im{id}.jpg", str(tmp_path / "list.txt"))
    assert [image.id for image in images.chosen] == ["10", "9"]
    assert images.unlisted == ["77"]


def test_a_pattern_that_matches_nothing_says_what_would(tmp_path):
    files = {"a/photo1.png": b"", "a/photo2.png": b"", "notes/blue.txt": b""}
    path = write_zip(tmp_path / "a.zip", files)
    called = r"the images are called a/photo1.png, a/photo2.png, ...: 'a/\{id\}.png' matches 2 of 2"
    error = rf"correct data.images \({called}\)"
    with pytest.raises(DataError, match=error):
        list_images(open_source(path), "im{id}.jpg")
    with pytest.raises(DataError, match=r"correct data.test.images"):
        list_images(open_source(path), "im{id}.jpg", key="data.test")


def test_a_zip_cut_short_is_named_with_its_size(tmp_path, photos):
    cut = tmp_path / "cut.zip"
    cut.write_bytes(photos.read_bytes()[:-200])
    with pytest.raises(
        DataError, match=r"cut.zip: cut short or not a .zip archive .* bytes\); copy it here again"
    ):
        open_source(cut)


@pytest.mark.parametrize("size", [100, 5000, 10_000])
def test_a_tar_cut_short_is_refused_when_opened(tmp_path, size):
    path = as_tar(tmp_path / "a.tar", {f"im{i}.jpg": random.Random(i).randbytes(3000) for i in range(3)})
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=r"a.tar: cut short or not a .tar archive"):
        open_source(path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("gone.zip", "there is no such"),
        ("a.tar.gz", "unpack it to a .tar"),
        ("a.rar", "not a folder, .zip or .tar"),
    ],
)
def test_what_is_no_source_is_refused_with_a_remedy(tmp_path, name, remedy):
    if name != "gone.zip":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=remedy):
        open_source(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_one_may_not_read_is_an_error(tmp_path):
    folder = as_folder(tmp_path / "folder", FILES)
    (folder / "top").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            open_source(folder)
    finally:
        (folder / "top").chmod(0o700)


def test_a_fingerprint_changes_with_a_file(tmp_path):
    folder = as_folder(tmp_path / "folder", FILES)
    before = fingerprint(folder)
    Path(folder / "top/im9.jpg").write_bytes(b"other")
    assert fingerprint(folder) != before


def test_digits_that_are_no_numbers_and_names_that_are_no_text(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"im4\u00b2.jpg": b"", "im3.jpg": b""})
    images = list_images(open_source(path), "im{id}.jpg").chosen
    assert [image.id for image in images] == ["3", "4\u00b2"]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / os.fsdecode(b"im\xff.jpg")).write_bytes(b"")
    with pytest.raises(DataError, match="is not UTF-8; rename it"):
        list_images(open_source(folder), "im{id}.jpg")


def test_hidden_and_foreign_files_do_not_match():
    members = ["__MACOSX/._im1.jpg", ".trash/im2.jpg", "a/im3.jpg", "a/im4.jpg.bak", "a/xim5.jpg"]
    assert match_members(members, "im{id}.jpg", "id") == [("3", "a/im3.jpg")]


@given(st.lists(st.text("ab019", max_size=6)))
def test_natural_order_is_an_order_and_numbers_rise(texts):
    ranked = sorted(texts, key=natural_key)
    numbers = [int(text) for text in ranked if text.isdigit()]
    assert numbers == sorted(numbers)
