"""Who is trained on and who is held out."""

import hashlib
import json
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.columns import SplitColumns, read_columns
from pipeline.data.index import Index
from pipeline.data.layout import packed_identity, split_identity
from pipeline.data.packed import PackedSet
from pipeline.data.splits import make_split, read_split, write_split
from pipeline.data.stratify import part_sizes, stratify
from pipeline.errors import DataError
from tests.conftest import data_spec, write_zip


def index_of(ids, paths=None, pixels=None):
    """Of images with these ids, paths and contents, which are all different unless they are given."""
    digests = [hashlib.sha1(text.encode()).hexdigest() for text in pixels or ids]
    paths = paths or [f"scene{int(i) // 3}/im{i}.jpg" for i in ids]
    names = [f"im{i}.jpg" for i in ids]
    return Index.of(zip(ids, names, paths, ["train"] * len(ids), digests, strict=True))


def packed_of(labels_NK, pixels=None, first_id=1):
    """What make_split looks at, without pixels on disk."""
    images = len(labels_NK)
    return PackedSet(
        path="data/packed/x",
        digest="d",
        size_px=8,
        resize="squash",
        index=index_of([str(first_id + i) for i in range(images)], pixels=pixels),
        labels=tuple(f"label{k}" for k in range(labels_NK.shape[1])),
        labels_NK=labels_NK.astype(np.uint8),
    )


def labels(images, blank_every=2):
    labels_NK = np.zeros((images, 3), np.uint8)
    labels_NK[np.arange(images) % blank_every > 0, 0] = 1
    labels_NK[::7, 1] = 1
    return labels_NK


def split(packed, method, **rest):
    return make_split(data_spec("x.zip", split=method, **rest), packed)


def test_ordered_takes_the_first_for_training_and_the_last_for_test():
    result = split(packed_of(labels(20)), {"method": "ordered", "validation": 0.25, "test": 0.1})
    assert result.train.tolist() == list(range(13))
    assert result.validation.tolist() == list(range(13, 18))
    assert result.test.tolist() == [18, 19]


@pytest.mark.parametrize("method", ["random", "stratified"])
def test_drawn_splits_are_disjoint_complete_seeded_and_stable(method):
    packed = packed_of(labels(101))
    spec = {"method": method, "validation": 0.2, "test": 0.1, "seed": 3}
    first, again = split(packed, spec), split(packed, spec)
    parts = [first.train, first.validation, first.test]
    assert sorted(np.concatenate(parts)) == list(range(101))
    assert [len(part) for part in parts[1:]] == pytest.approx([20, 10], abs=1)
    assert all(
        (a == b).all() for a, b in zip(parts, (again.train, again.validation, again.test), strict=True)
    )
    assert (split(packed, spec | {"seed": 4}).train.tolist()) != first.train.tolist()
    assert all((np.diff(part) > 0).all() for part in parts)


@given(st.integers(0, 2**32 - 1), st.integers(60, 300))
def test_stratified_gives_every_part_its_share_of_every_label(seed, images):
    rng = np.random.default_rng(seed)
    labels_NK = (rng.random((images, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]).astype(np.uint8)
    part_N = stratify(labels_NK.astype(np.int64), np.ones(images, np.int64), (0.7, 0.2, 0.1), rng)
    assert set(part_N) <= {0, 1, 2}
    for share, part in zip((0.7, 0.2, 0.1), range(3), strict=True):
        inside = part_N == part
        assert inside.sum() == part_sizes(images, (0.7, 0.2, 0.1))[part]
        wanted = share * labels_NK.sum(axis=0)
        assert (abs(labels_NK[inside].sum(axis=0) - wanted) <= 0.08 * labels_NK.sum(axis=0) + 2).all()


def test_stratified_spreads_a_rare_label_better_than_chance():
    labels_NK = np.zeros((1000, 2), np.int64)
    labels_NK[:5, 1] = 1
    labels_NK[5:500, 0] = 1
    part_N = stratify(labels_NK, np.ones(1000, np.int64), (0.8, 0.2, 0.0), np.random.default_rng(0))
    assert (part_N[:5] == 1).sum() == 1
    assert (part_N[500:] == 1).sum() == 100


@pytest.mark.parametrize("labels_count", [10, 50, 200])
def test_stratified_honours_the_asked_share_where_labels_have_two_images(labels_count):
    labels_NK = np.repeat(np.eye(labels_count, dtype=np.uint8), 2, axis=0)
    result = split(packed_of(labels_NK), {"method": "stratified", "validation": 0.2})
    assert len(result.validation) == round(0.2 * len(labels_NK))
    held_K = labels_NK[result.validation].sum(axis=0)
    assert (held_K <= 1).all(), "a label with two images keeps one for training"
    without = result.labels_without["validation"]
    assert len(without) == (held_K == 0).sum()
    assert f"{len(without)} labels have no validation image: label" in result.summary()
    assert "train" not in result.labels_without


GROUPS = {"pattern": r"(scene\d+)/"}


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(3, 9), min_size=5, max_size=30),
    st.sampled_from(["ordered", "random", "stratified"]),
    st.sampled_from([(0.2, 0.0), (0.3, 0.2), (0.05, 0.0)]),
)
def test_no_group_straddles_and_sizes_are_near_the_asked_ones(seed, sizes, method, shares):
    rng = np.random.default_rng(seed)
    group_N = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    packed = packed_of((rng.random((len(group_N), 3)) < 0.4).astype(np.uint8))
    paths = [f"scene{group}/{row}.jpg" for row, group in enumerate(group_N)]
    packed = replace(packed, index=index_of(packed.ids, paths))
    validation, test = shares
    spec = {"method": method, "validation": validation, "test": test, "group": GROUPS}
    result = split(packed, spec | ({} if method == "ordered" else {"seed": 1}))
    where = {name: set(group_N[getattr(result, name)]) for name in ("train", "validation", "test")}
    assert sum(map(len, where.values())) == len(sizes)
    assert set.union(*where.values()) == set(range(len(sizes)))
    assert abs(len(result.validation) - validation * len(group_N)) <= max(sizes)
    assert abs(len(result.test) - test * len(group_N)) <= max(sizes)


def test_groups_that_lists_ranges_or_columns_tear_are_all_named(tmp_path):
    packed = packed_of(labels(12))  # ids 1 to 12: scene0 has 1 and 2, scene1 3 to 5, ...
    with pytest.raises(DataError) as caught:
        split(packed, {"method": "ranges", "train": "1-4", "validation": "5-12", "group": GROUPS})
    assert "1 groups of data.split.group lie in two splits" in str(caught.value)
    assert "scene1: scene1/im3.jpg in train and scene1/im5.jpg in validation" in str(caught.value)
    whole = split(packed, {"method": "ranges", "train": "1-5", "validation": "6-12", "group": GROUPS})
    assert len(whole.train) == 5


def test_images_without_a_group_are_named():
    with pytest.raises(DataError, match=r"'patient' finds nothing in 12 of 12 images: scene0/im1.jpg"):
        split(packed_of(labels(12)), {"method": "random", "group": {"pattern": "patient"}})
    data = data_spec("x.zip", split={"method": "random", "group": {"column": "film"}})
    with pytest.raises(DataError, match=r"column 'film' of data.split.group has no value for 2 of 12 images"):
        make_split(data, packed_of(labels(12)), SplitColumns(group=("a",) * 10 + ("", None)))


def by_column(cells, **rest):
    data = data_spec("x.zip", split={"method": "column", "column": "split"} | rest)
    return make_split(data, packed_of(labels(len(cells))), SplitColumns(split=tuple(cells)))


def test_a_column_divides_by_words_or_numbers():
    result = by_column(["Train", "val", "test", "0", "1.0", "2", "train", "VALID"])
    assert (result.train.tolist(), result.validation.tolist(), result.test.tolist()) == (
        [0, 3, 6],
        [1, 4, 7],
        [2, 5],
    )
    swapped = by_column(["a", "b", "b"], train="b", validation="a")
    assert (swapped.train.tolist(), swapped.validation.tolist()) == ([1, 2], [0])


def test_cells_that_mean_no_split_and_images_without_a_row_are_refused():
    error = r"column 'split' holds holdout \(2x\), empty \(1x\), which is not one of .*data.split.train: \[holdout\]"
    with pytest.raises(DataError, match=error):
        by_column(["train", "val", "holdout", "holdout", ""])
    with pytest.raises(
        DataError, match=r"does not mention 1 of 4 images, more than data.set_aside.without_row"
    ):
        by_column(["train", "val", "train", None])


def test_columns_are_read_by_reference_from_the_labels_or_a_table_of_their_own(tmp_path):
    files = {
        "l.csv": "file,dog,split\nim1.jpg,1,train\n2,0,val\nscene1/im3.jpg,1,train\n",
        "list_eval_partition.txt": "im1.jpg 0\nim2.jpg 1\nim3.jpg 2\n",
        "twice.csv": "file,split\n1,train\nim1.jpg,val\n",
    }
    source = write_zip(tmp_path / "a.zip", files | dict.fromkeys(packed_of(labels(3)).paths, b""))
    onehot = {"format": "onehot_csv", "file": "l.csv"}

    def read(**split):
        data = data_spec(source, labels=onehot, split={"method": "column", **split})
        return read_columns(data, packed_of(labels(3))).split

    assert read(column="split") == ("train", "val", "train")
    own = {"file": "list_eval_partition.txt", "delimiter": "space", "header": False}
    assert read(column="2", **own) == ("0", "1", "2")
    with pytest.raises(
        DataError, match=r"twice.csv: 1 rows contradict another: line 3: scene0/im1.jpg is 'val'"
    ):
        read(column="split", file="twice.csv")
    with pytest.raises(DataError, match=r"has no column 'fold', its columns are file, dog, split"):
        read(column="fold")


def test_another_table_of_a_column_makes_another_set_wherever_it_lies(tmp_path):
    """Else a changed partition file would be overlooked, and cells would keep the old split."""
    files = {"im1.jpg": b"a", "im2.jpg": b"b", "annotations/dog.txt": "1\n"}

    def identity(folder, table, **column):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "parts.csv").write_text(table)
        split = {"method": "column", "column": "part", "file": "parts.csv", "source": str(tmp_path / folder)}
        data = data_spec(write_zip(tmp_path / "a.zip", files), split=split | column)
        return packed_identity(data, tmp_path / "cache").digest, split_identity(data)

    first = identity("one", "f,part\n1,train\n2,val\n")
    assert identity("two", "f,part\n1,train\n2,val\n") == first
    assert identity("one", "f,part\n1,val\n2,train\n")[0] != first[0]
    assert identity("two", "f,part\n1,train\n2,val\n", train="a")[1] != first[1]


def test_ranges_and_lists_take_ids(tmp_path):
    packed = packed_of(labels(10), first_id=100)
    ranges = split(packed, {"method": "ranges", "train": "100-103,106-107", "validation": "104-105"})
    assert ranges.train.tolist() == [0, 1, 2, 3, 6, 7]
    assert ranges.validation.tolist() == [4, 5]
    assert ranges.left_out["in no split"] == ["im108.jpg", "im109.jpg"]
    (tmp_path / "t.txt").write_text("102\nim100.jpg\n")
    (tmp_path / "v.txt").write_text("101\n")
    lists = {"method": "lists", "train": str(tmp_path / "t.txt"), "validation": str(tmp_path / "v.txt")}
    assert split(packed, lists).train.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("train", "validation", "error"),
    [
        ("1-5", "5-9", r"1 images are in train and in validation, e.g. id 5"),
        ("1-5", "50-60", r"no image is left for validation of 10; correct data.split"),
    ],
)
def test_bad_ranges(train, validation, error):
    with pytest.raises(DataError, match=error):
        split(packed_of(labels(10)), {"method": "ranges", "train": train, "validation": validation})


def test_a_test_share_that_comes_to_nothing_is_refused_before_any_training():
    with pytest.raises(DataError, match="no image is left for test of 4"):
        split(packed_of(labels(4)), {"method": "ordered", "validation": 0.25, "test": 0.05})


def test_ids_may_be_longer_than_any_machine_number():
    packed = packed_of(labels(3), first_id=10**20)
    ranges = {
        "method": "ranges",
        "train": f"{10**20}-{10**20 + 1}",
        "validation": f"{10**20 + 2}-{10**20 + 2}",
    }
    assert split(packed, ranges).train.tolist() == [0, 1]


def test_ranges_need_numbers():
    packed = packed_of(labels(3))
    words = replace(packed, index=index_of("abc", "abc"))
    with pytest.raises(DataError, match="the id 'a' is not a number"):
        split(words, {"method": "ranges", "train": "1-2", "validation": "3-3"})


@pytest.mark.parametrize(
    ("train", "validation", "error"),
    [
        ("1\n2\n", "2\n", r"2 is in the list of data.split.train too"),
        ("1\n77\n", "2\n", r"1 of 2 entries name no"),
    ],
)
def test_bad_lists(tmp_path, train, validation, error):
    (tmp_path / "t.txt").write_text(train)
    (tmp_path / "v.txt").write_text(validation)
    lists = {"method": "lists", "train": str(tmp_path / "t.txt"), "validation": str(tmp_path / "v.txt")}
    with pytest.raises(DataError, match=error):
        split(packed_of(labels(10)), lists)


def test_the_training_copy_of_a_held_out_image_goes():
    pixels = [str(i) for i in range(10)]
    pixels[2] = pixels[9]
    result = split(packed_of(labels(10), pixels), {"method": "ordered", "validation": 0.2})
    assert 2 not in result.train
    assert 9 in result.validation
    assert result.left_out == {"copies in training of validation or test images": ["im3.jpg"]}


@pytest.mark.parametrize(("policy", "negatives"), [("keep", 40), ("drop", 0), (0.25, 10)])
def test_negative_training_images_are_kept_dropped_or_thinned(policy, negatives):
    packed = packed_of(labels(100, blank_every=2) * [1, 0, 1])
    result = split(packed, {"method": "ordered", "validation": 0.2}, negatives={"train": policy})
    negative_N = packed.labels_NK.sum(axis=1) == 0
    assert negative_N[result.train].sum() == negatives
    assert (~negative_N)[result.train].sum() == 40
    assert negative_N[result.validation].sum() == 10


def test_negative_validation_images_can_be_dropped():
    packed = packed_of(labels(100) * [1, 0, 0])
    result = split(packed, {"method": "ordered", "validation": 0.2}, negatives={"validation": "drop"})
    assert len(result.validation) == 10


def test_a_split_reads_back_as_it_was_written(tmp_path):
    packed = packed_of(labels(20))
    result = split(packed, {"method": "ordered", "validation": 0.25, "test": 0.1})
    write_split(tmp_path / "split.json", result, packed)
    again = read_split(tmp_path / "split.json")
    assert again.train.tolist() == result.train.tolist()
    assert again.test.tolist() == result.test.tolist()


def test_a_label_may_be_called_as_a_count_is(tmp_path):
    packed = replace(packed_of(labels(20)), labels=("images", "negative", "x"))
    write_split(tmp_path / "split.json", split(packed, {"method": "ordered", "validation": 0.25}), packed)
    counts = json.loads((tmp_path / "split.json").read_text())["counts"]["train"]
    trained_NK = packed.labels_NK[:15]
    assert (counts["images"], counts["negative"]) == (15, (trained_NK.sum(axis=1) == 0).sum())
    assert counts["labels"] == dict(zip(packed.labels, trained_NK.sum(axis=0).tolist(), strict=True))


def test_a_damaged_split_file_is_named(tmp_path):
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(DataError, match=r"split.json: the split cannot be read"):
        read_split(tmp_path / "split.json")


def test_the_identity_of_a_split_is_what_its_lists_hold_not_where_they_are(tmp_path):
    for folder, ids in (("a", "1\n"), ("b", "1\n"), ("c", "2\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(ids)
    (tmp_path / "v.txt").write_text("3\n")

    def identity(folder):
        lists = SimpleNamespace(train=str(tmp_path / folder / "t.txt"), validation=str(tmp_path / "v.txt"))
        return split_identity(data_spec("x.zip", split={"method": "lists", **vars(lists)}))

    assert identity("a") == identity("b") != identity("c")


def test_stratification_takes_few_bytes_an_image_and_label(monkeypatch):
    """4,000 x 250 labels: 1 MB, of which one copy is made; as numbers of 8 bytes each copy would be 8 MB."""
    monkeypatch.setattr("pipeline.data.stratify._VALUES", 1 << 14)
    labels_NK = (np.random.default_rng(0).random((4_000, 250), np.float32) < 0.02).astype(np.uint8)
    ones_N, shares = np.ones(4_000, np.int64), (0.8, 0.1, 0.1)
    tracemalloc.start()
    try:
        part_N = stratify(labels_NK, ones_N, shares, np.random.default_rng(0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * labels_NK.nbytes
    wide = stratify(labels_NK.astype(np.int64), ones_N, shares, np.random.default_rng(0))
    np.testing.assert_array_equal(part_N, wide)
    assert np.bincount(part_N).tolist() == [3200, 400, 400]
