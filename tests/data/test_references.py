"""Which image a reference means: paths by whole parts, never another folder's file of the same name."""

import unicodedata
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.images import list_images
from pipeline.data.reading import read_data
from pipeline.data.references import AMBIGUOUS, UNKNOWN, Finder, ImageRef
from pipeline.data.sources import open_source
from pipeline.errors import DataError
from tests.conftest import data_spec, jpeg, write_zip


def listed(tmp_path, members, pattern="{id}.jpg"):
    path = write_zip(tmp_path / "a.zip", dict.fromkeys(members, b"x"))
    return list_images(open_source(path), pattern)


def find(images, *references, folder=""):
    finder = Finder(images.chosen)
    return [finder.find(reference, folder) for reference in references]


def test_an_image_is_found_by_id_name_path_and_number(tmp_path):
    images = listed(tmp_path, ["x/000139.jpg", "x/000285.jpg"])
    means_first = [
        "000139",
        "139",
        "000139.jpg",
        "x/000139.jpg",
        "./x/000139.jpg",
        "/x/000139",
        "top/x/000139.jpg",
    ]
    assert find(images, *means_first, "x\\000139.jpg", "000139.JPG") == [0] * 9
    assert find(images, "140", "other/000139.jpg", "xx/000139.jpg", "139.jpg") == [UNKNOWN] * 4


def test_a_reference_with_a_folder_never_means_another_folder_s_file(tmp_path):
    images = listed(tmp_path, ["train/2.jpg", "train/3.jpg"], "train/{id}.jpg")
    assert find(images, "test/2.jpg", "train/2.jpg", "data/train/3.jpg", "2.jpg") == [UNKNOWN, 0, 1, 0]


def test_two_folders_above_one_path_cannot_both_mean_it(tmp_path):
    images = listed(tmp_path, ["2.jpg", "3.jpg"])
    assert find(images, "train/2.jpg", "test/2.jpg", "data/train/2.jpg") == [0, AMBIGUOUS, 0]


def test_a_name_in_two_folders_needs_its_folder(tmp_path):
    images = listed(tmp_path, ["a/1.jpg", "b/1.jpg", "b/2.jpg"])
    assert [image.id for image in images.chosen] == ["a/1", "b/1", "b/2"]
    assert [image.name for image in images.chosen] == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    assert find(images, "1.jpg", "1", "b/1", "x/b/1.jpg", "2.jpg") == [AMBIGUOUS, AMBIGUOUS, 1, 1, 2]
    assert find(images, "1.jpg", folder="b") == [1]
    assert Finder(images.chosen).explain(["1.jpg"]) == (
        "1 entry does not say which image it means; write more of its path. '1.jpg': a/1.jpg or b/1.jpg"
    )


def test_a_file_at_the_top_is_meant_by_its_whole_path(tmp_path):
    images = listed(tmp_path, ["2.jpg", "test/2.jpg"])
    assert find(images, "2.jpg", "test/2.jpg") == [0, 1]


def test_ids_that_are_one_number_in_two_spellings_need_more(tmp_path):
    images = listed(tmp_path, ["im2.jpg", "im00002.jpg"], "im{id}.jpg")
    rows = {image.id: row for row, image in enumerate(images.chosen)}
    assert find(images, "2", "00002", "02") == [rows["2"], rows["00002"], AMBIGUOUS]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_compare_in_nfc(tmp_path, form):
    images = listed(tmp_path, [unicodedata.normalize("NFD", "ä/é1.jpg"), "o.jpg"])
    assert images.chosen[0].id == "o"
    assert (
        find(images, *(unicodedata.normalize(form, text) for text in ("é1", "é1.jpg", "ä/é1.jpg", "x/ä/é1")))
        == [1] * 4
    )


def test_one_name_in_two_unicode_forms_is_refused(tmp_path):
    names = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    with pytest.raises(DataError, match="are one name in two Unicode forms; rename one"):
        listed(tmp_path, names)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{id}.jpg", ["1", "2", "3"]),
        ("{id}.*", ["1", "2", "3", "4"]),
        ("images/{id}.jpg", ["1", "2", "deep/3"]),
        ("images/{id}", ["1.jpg", "2.JPG", "4.png", "deep/3.jpg"]),
    ],
)
def test_patterns_take_endings_in_any_case_and_folders_below(tmp_path, pattern, expected):
    members = [
        "images/1.jpg",
        "images/2.JPG",
        "images/deep/3.jpg",
        "images/4.png",
        "labels.csv",
        "images/.5.jpg",
    ]
    images = listed(tmp_path, members, pattern)
    assert [image.id for image in images.chosen] == expected
    assert images.unmatched == ([] if len(expected) == 4 else ["images/4.png"])


def test_an_id_does_not_begin_within_another_name(tmp_path):
    images = listed(tmp_path, ["im1.jpg", "imgs/x2.jpg", "imgs/im3.jpg"], "im{id}.jpg")
    assert [image.id for image in images.chosen] == ["1", "3"]
    assert images.unmatched == ["imgs/x2.jpg"]


def test_image_lists_that_choose_nothing_are_sentences(tmp_path):
    source = open_source(write_zip(tmp_path / "a.zip", {"a/1.jpg": b"", "b/1.jpg": b""}))
    for text, error in [
        ("", r"list.txt: holds no entry; write an id or file name a line, or data.image_list: null"),
        ("7\n", r"none of its 1 entries names an image: it has '7', images are called a/1.jpg, b/1.jpg"),
        ("a/1\n1\n", r"list.txt: 1 entry does not say which image it means"),
    ]:
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(DataError, match=error):
            list_images(source, "{id}.jpg", str(tmp_path / "list.txt"))


def read(path, files, pattern="im{id}.jpg", **settings):
    labels = {"format": "onehot_csv", "file": "y.csv"}
    return read_data(data_spec(write_zip(path, files), images=pattern, labels=labels, **settings))


def test_all_rows_that_contradict_each_other_are_named_at_once(tmp_path):
    files = {f"im{i}.jpg": b"" for i in (1, 2, 3)}
    files["y.csv"] = "f,dog\nim1.jpg,1\nold/im1.jpg,0\n2,1\n00002,0\nim3.jpg,1\n3,1\n"
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.zip", files)
    text = str(caught.value)
    assert "2 images have rows that differ; keep one row for each" in text
    assert "y.csv:2 (im1.jpg: dog)" in text
    assert "y.csv:3 (old/im1.jpg: no label)" in text
    assert "y.csv:5 (00002: no label)" in text
    assert "im3" not in text


def test_rows_of_images_that_are_not_chosen_are_said_and_not_unknown(tmp_path):
    files = {"train/1.jpg": b"", "test/1.jpg": b"", "y.csv": "f,dog\ntrain/1.jpg,1\ntest/1.jpg,0\n"}
    data = read(tmp_path / "a.zip", files, "train/{id}.jpg")
    assert data.labels_NK.tolist() == [[1]]
    assert data.notes == ["1 references name images that are not chosen: test/1.jpg"]
    assert data.unmatched == ["test/1.jpg"]


# ---------------------------------------------------------------- names in archives and folders


def test_zip_names_in_utf8_without_the_flag_and_with_back_slashes(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path, {"XX\\im1.jpg": jpeg(1), "y.csv": "f,dog\n\xe9/im1.jpg,1\n"})
    body = path.read_bytes()
    assert b"XX\\im1.jpg" in body
    path.write_bytes(body.replace(b"XX\\im1.jpg", "é".encode() + b"\\im1.jpg"))  # the flag stays unset
    with zipfile.ZipFile(path) as archive:
        assert "é" not in archive.namelist()[0]
    source = open_source(path)
    assert sorted(source.members) == ["y.csv", "é/im1.jpg"]
    assert source.read("é/im1.jpg") == jpeg(1)
    assert source.checksum("é/im1.jpg")[0] == len(jpeg(1))


def test_a_folder_s_file_with_a_back_slash_stays_readable(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a\\im1.jpg").write_bytes(b"one")
    source = open_source(tmp_path / "photos")
    assert source.members == ["a/im1.jpg"]
    assert source.read("a/im1.jpg") == b"one"
    (tmp_path / "photos" / "a").mkdir()
    (tmp_path / "photos" / "a" / "im1.jpg").write_bytes(b"two")
    with pytest.raises(DataError, match=r"two files are named a/im1.jpg, one of them with back slashes"):
        open_source(tmp_path / "photos")


@pytest.mark.parametrize("ending", [".ZIP", ".Zip", ".TAR"])
def test_endings_of_archives_count_in_any_case(tmp_path, ending):
    path = write_zip(tmp_path / f"a{ending}", {"im1.jpg": b"x"})
    if ending == ".TAR":
        with pytest.raises(DataError, match=r"not a .TAR archive"):
            open_source(path)
    else:
        assert open_source(path).members == ["im1.jpg"]


@pytest.mark.parametrize(
    ("offset_flag", "offset_method", "value", "error"),
    [(8, None, 1, "is encrypted; unpack it"), (None, 10, 9, "is compressed by Deflate64")],
)
def test_zips_that_python_cannot_read_are_told_in_words(tmp_path, offset_flag, offset_method, value, error):
    path = write_zip(tmp_path / "a.zip", {"im1.jpg": b"x" * 100})
    body = bytearray(path.read_bytes())
    start = body.index(b"PK\x01\x02")
    body[start + (offset_flag or offset_method)] = value
    path.write_bytes(body)
    with pytest.raises(DataError, match=rf"a.zip: im1.jpg {error}"):
        open_source(path)


# ---------------------------------------------------------------- a law

parts = st.sampled_from(["a", "b", "train", "test"])
paths = st.lists(parts, max_size=3).flatmap(
    lambda folders: st.sampled_from(["1.jpg", "2.jpg", "01.jpg"]).map(lambda name: "/".join([*folders, name]))
)


@given(st.sets(paths, min_size=1, max_size=6), paths)
def test_what_is_found_ends_like_the_reference_or_the_other_way_round(members, reference):
    images = [ImageRef(m.rpartition(".")[0], m, m) for m in sorted(members)]
    row = Finder(images).find(reference)
    ends = [
        i
        for i, image in enumerate(images)
        if f"/{image.member}".endswith(f"/{reference}") or f"/{reference}".endswith(f"/{image.member}")
    ]
    if row >= 0:
        assert row in ends or ("/" not in reference and images[row].member.rpartition("/")[2] == reference)
    if row == UNKNOWN:
        assert ends == []
    if reference in members:
        assert images[row].member == reference
