"""A submission of any size is written and checked part by part, with the bytes that `csv.writer` gives."""

import csv
import io
import tracemalloc
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SubmissionError
from pipeline.evaluation import submission_file
from pipeline.evaluation.submission_file import BitRows, check_submission, write_submission
from pipeline.storage.npz_rows import npz_rows

ODD = ["a,b", 'say "x"', "two\nlines", "\n", '"', "", " b", "ünï", "im,0,1\n", "'"]


def by_the_library(names, labels, decisions_NK):
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["ids", *labels])
    writer.writerows([name, *row] for name, row in zip(names, decisions_NK.tolist(), strict=True))
    return file.getvalue().encode()


@given(names=st.lists(st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
                      min_size=1, max_size=9), labels=st.integers(1, 3), seed=st.integers(0, 9))  # fmt: skip
def test_the_bytes_are_those_of_the_library(tmp_path_factory, names, labels, seed):
    path = tmp_path_factory.getbasetemp() / "submission.csv"
    decisions_NK = np.random.default_rng(seed).integers(0, 2, (len(names), labels), np.uint8)
    head = ODD[:labels]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission_file, "VALUES", 4)
        write_submission(path, names, head, decisions_NK)
        assert path.read_bytes() == by_the_library(names, head, decisions_NK)
        if not any("\r" in name for name in names):  # the library does not quote it before Python 3.13
            check_submission(path, names, head, decisions_NK)
            check_submission(path, names, head, BitRows(np.packbits(decisions_NK, axis=1), labels))


@pytest.mark.parametrize("place", range(0, 40, 3))
def test_every_changed_byte_is_found(tmp_path, place):
    names, labels = ["one.jpg", "a,b.jpg", "two\nlines"], ["dog", "sky"]
    decisions_NK = np.array([[0, 1], [1, 1], [0, 0]], np.uint8)
    path = tmp_path / "submission.csv"
    write_submission(path, names, labels, decisions_NK)
    body = bytearray(path.read_bytes())
    body[place % len(body)] ^= 1
    path.write_bytes(body)
    with pytest.raises((SubmissionError, csv.Error)):
        check_submission(path, names, labels, decisions_NK)


def test_a_file_of_another_form_with_the_same_rows_is_right(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_bytes(b'"ids",dog\r\n"a","1"\r\n')
    check_submission(path, ["a"], ["dog"], np.array([[1]], np.uint8))


def test_memory_holds_a_part_of_the_rows(tmp_path, monkeypatch):
    """40,000 images x 200 labels: 8 M decisions; a list of them would be 64 MB, the file is 16 MB."""
    monkeypatch.setattr(submission_file, "VALUES", 1 << 16)
    names, labels = [f"im{i}.jpg" for i in range(40_000)], [f"l{k}" for k in range(200)]
    bits_NB = np.random.default_rng(0).integers(0, 256, (40_000, 25), np.uint8)
    asked = []

    class Watched(BitRows):
        def __getitem__(self, rows):
            asked.append(rows.stop - rows.start)
            return super().__getitem__(rows)

    decisions_NK = Watched(bits_NB, 200)
    tracemalloc.start()
    try:
        write_submission(tmp_path / "submission.csv", names, labels, decisions_NK)
        check_submission(tmp_path / "submission.csv", names, labels, decisions_NK)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3e6
    assert max(asked) == (1 << 16) // 200
    assert sum(asked) == 2 * 40_000  # one pass to write, one to check


def test_rows_of_an_archive_come_in_parts_and_damage_is_found(tmp_path):
    path, scores = tmp_path / "scores.npz", np.random.default_rng(0).random((10, 3), np.float32)
    np.savez(path, scores=scores, names=np.array(["a", "bc"]), turned=np.asfortranarray(scores))
    with ZipFile(path) as archive:
        parts = list(npz_rows(archive, "scores", 4))
        assert [len(part) for part in parts] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate(parts), scores)
        assert [part.tolist() for part in npz_rows(archive, "names", 1)] == [["a"], ["bc"]]
        with pytest.raises(ValueError, match="turned is not stored row by row"):
            list(npz_rows(archive, "turned", 4))
    body = path.read_bytes()
    at = body.index(scores.tobytes())
    path.write_bytes(body[:at] + b"\x00\x01\x02\x03" + body[at + 4 :])
    with ZipFile(path) as archive, pytest.raises(Exception, match="CRC"):
        list(npz_rows(archive, "scores", 4))
