"""The index of a packed set as arrays: the same as the text for people, small, and refused where it is damaged."""

import csv
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.index import COLUMNS, Index, equal_groups, last_equal
from pipeline.data.packed import PackedSet
from pipeline.data.wrangle import wrangle
from pipeline.errors import DataError
from pipeline.storage.files import sha256_file, write_csv, write_json
from tests.conftest import data_spec, jpeg, write_zip

PARTS = ("train", "validation", "test")
# what a file name may hold: all but lone surrogates, which wrangle refuses
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def digest_of(number):
    return number.to_bytes(20, "big").hex()


def images_of(texts):
    return [
        (text, f"{text}.jpg", f"a/{text}.jpg", PARTS[row % 3], digest_of(row))
        for row, text in enumerate(texts)
    ]


def says(index):
    return [list(column) for column in (index.ids, index.names, index.paths)]


@given(st.lists(TEXTS, min_size=1), st.data())
def test_any_text_comes_back_from_arrays_and_from_csv(tmp_path_factory, texts, data):
    images = images_of(texts)
    folder = tmp_path_factory.mktemp("index")
    index = Index.of(images)
    with (folder / "index.npz").open("wb") as file:
        index.write(file)
    write_csv(folder / "index.csv", ["row", *COLUMNS], ([row, *cells] for row, cells in enumerate(images)))
    expected = [[image[i] for image in images] for i in range(3)]
    reads = [index, Index.open(folder / "index.npz")]
    if "\r" not in "".join(texts):  # which Python's csv writes without quotes
        reads.append(Index.from_csv(folder / "index.csv"))
    for read in reads:
        assert says(read) == expected
        assert [tuple(image) for image in read] == [image[:3] for image in images]
        assert [read.ids[row] for row in range(len(texts))] == texts
        assert read.ids == tuple(texts)
        assert [digest.tobytes().hex() for digest in read.pixel_digests] == [i[4] for i in images]
        for part in PARTS:
            assert read.rows_of(part).tolist() == [r for r, i in enumerate(images) if i[3] == part]
        rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=20))
        assert read.names.take(rows) == [images[row][1] for row in rows]


def test_texts_are_taken_in_chunks(monkeypatch):
    monkeypatch.setattr("pipeline.data.index._CHUNK", 3)
    ids = Index.of(images_of([str(10**i) for i in range(11)])).ids
    assert list(ids) == [str(10**i) for i in range(11)]
    assert ids.take([10, 0, 3, 3, 9, 1, 7]) == [str(10**i) for i in (10, 0, 3, 3, 9, 1, 7)]
    assert ids[-1] == str(10**10)
    assert ids != [str(10**i) for i in range(10)]
    assert ids != [str(10**i + (i == 5)) for i in range(11)]
    with pytest.raises(IndexError):
        ids[11]


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)), st.sampled_from([0, 2**96]))
def test_equal_digests_are_found_whatever_their_first_bytes_say(ours, others, place):
    """Digests that differ only behind the bytes that are compared as numbers are different."""
    ours_ND, others_ND = (
        np.array([list((n * max(1, place)).to_bytes(20, "big")) for n in numbers], np.uint8).reshape(-1, 20)
        for numbers in (ours, others)
    )
    last = {number: row for row, number in enumerate(others)}
    assert last_equal(ours_ND, others_ND).tolist() == [last.get(number, -1) for number in ours]
    groups = {}
    for row, number in enumerate(ours):
        groups.setdefault(number, []).append(row)
    assert equal_groups(ours_ND) == [rows for rows in groups.values() if len(rows) > 1]


def test_an_image_of_a_large_index_takes_few_bytes(tmp_path):
    """Not 500, as Python's strings took in every training process; ids, names and paths are 33 here."""
    images = 50_000
    index = Index.of(images_of(map(str, range(100_000, 100_000 + images))))
    with (tmp_path / "index.npz").open("wb") as file:
        index.write(file)
    del index

    def held(use):
        tracemalloc.start()
        read = Index.open(tmp_path / "index.npz")
        use(read)
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return now / images, peak / images

    assert held(lambda read: read)[1] < 1  # nothing is read that is not used
    assert max(held(lambda read: read.ids[7])) < 20
    assert max(held(lambda read: [read.ids, read.names, read.paths, read.pixel_digests])) < 90
    # however many are gone through
    assert max(held(lambda read: sum(1 for _ in read))) < 150


# ---------------------------------------------------------------- in a packed set


@pytest.fixture
def folder(tmp_path):
    files = {f"images/im{i}.jpg": jpeg(i) for i in range(1, 10)} | {"annotations/dog.txt": "1\n2\n"}
    data = data_spec(write_zip(tmp_path / "photos.zip", files), images="images/im{id}.jpg", size_px=16)
    return wrangle(data, tmp_path / "data", workers=1)


def as_packed_before_there_were_arrays(folder):
    dataset = json.loads((folder / "dataset.json").read_text())
    del dataset["files"]["index.npz"]
    (folder / "index.npz").unlink()
    write_json(folder / "dataset.json", dataset)


def test_the_arrays_say_what_the_text_for_people_says(folder):
    packed = PackedSet.open(folder)
    with (folder / "index.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert says(packed.index) == [[row[name] for row in rows] for name in ("id", "name", "path")]
    assert [digest.tobytes().hex() for digest in packed.index.pixel_digests] == [r["pixels"] for r in rows]
    assert packed.index.rows_of("train").tolist() == list(range(9))


def test_an_earlier_set_without_arrays_opens_as_it_is(folder):
    new = PackedSet.open(folder)
    expected = says(new.index), new.index.pixel_digests.tolist()
    as_packed_before_there_were_arrays(folder)
    old = PackedSet.open(folder)
    assert (says(old.index), old.index.pixel_digests.tolist()) == expected
    with (folder / "index.csv").open("a") as file:
        file.write("x")
    with pytest.raises(DataError, match=r"index.csv: is damaged"):
        PackedSet.open(folder, verify=False)
    with pytest.raises(
        DataError, match=r"index.csv: cannot be read .*; delete .* and run `make wrangle` again"
    ):
        Index.from_csv(folder / "index.csv")


def test_text_for_people_is_neither_read_nor_hashed_where_there_are_arrays(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        "pipeline.data.verified.sha256_file", lambda path: read.append(path.name) or sha256_file(path)
    )
    monkeypatch.setattr("pipeline.data.index.csv.reader", lambda _: pytest.fail("parsed"))
    assert PackedSet.open(folder, verify=False).ids[0] == "1"
    assert sorted(read) == ["index.npz", "labels.npy", "wrangle_report.json"]


@pytest.mark.parametrize("verify", [True, False])
def test_damaged_arrays_are_refused_with_a_remedy(folder, verify):
    body = bytearray((folder / "index.npz").read_bytes())
    body[200] ^= 1
    (folder / "index.npz").write_bytes(body)
    with pytest.raises(DataError, match=r"index.npz: is damaged .*; delete .* and run `make wrangle` again"):
        PackedSet.open(folder, verify=verify)


def test_arrays_that_are_damaged_or_gone_while_in_use_are_refused(folder):
    packed, later = PackedSet.open(folder), PackedSet.open(folder)
    assert packed.ids[0] == "1"
    path = folder / "index.npz"
    body = path.read_bytes()
    path.write_bytes(body.replace(b"im1.jpg", b"im7.jpg", 1))  # in the names
    with pytest.raises(DataError, match=r"index.npz: cannot be read .*; delete .* and run `make wrangle`"):
        list(packed.names), list(packed.paths)
    path.unlink()
    with pytest.raises(DataError, match=r"index.npz: cannot be read"):
        later.ids  # noqa: B018 - reading it is what fails
    assert packed.ids[0] == "1"
