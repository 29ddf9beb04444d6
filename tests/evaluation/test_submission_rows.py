"""The submission has a row for every image of the test source, in its order; and what is known of the test score."""

import csv
import json
import zipfile

import numpy as np
import pytest

from pipeline.evaluation.submission import with_unscored
from tests.cells import jobs, packed_project


def test_images_without_scores_come_where_they_belong_with_no_label():
    decisions_NK = np.array([[1, 0], [0, 1], [1, 1]], np.uint8)
    names, rows_NK = with_unscored(["b", "d", "e"], decisions_NK, [(0, "a"), (2, "c"), (5, "f")])
    assert names == list("abcdef")
    assert rows_NK.tolist() == [[0, 0], [1, 0], [0, 0], [0, 1], [1, 1], [0, 0]]
    names, rows_NK = with_unscored(["b"], decisions_NK[:1], [])
    assert (names, rows_NK.tolist()) == (["b"], [[1, 0]])


@pytest.fixture(scope="module")
def submitted(tmp_path_factory, drawn_zip):
    """A project whose second test image is damaged: (root, what `make submission` printed, names in the archive)."""
    root = tmp_path_factory.mktemp("damaged")
    spec = packed_project(root, drawn_zip, epochs=1, model={"name": "cnn2"})
    damaged = root / "test.zip"
    with zipfile.ZipFile(drawn_zip.test) as before, zipfile.ZipFile(damaged, "w") as after:
        pictures = sorted(name for name in before.namelist() if name.endswith(".jpg"))
        for name in before.namelist():
            after.writestr(name, b"no picture" if name == pictures[1] else before.read(name))
    text = spec.read_text().replace(str(drawn_zip.test), str(damaged))
    spec.write_text(text.replace("  size_px: 32\n", "  size_px: 32\n  set_aside: {undecodable: 0.1}\n"))
    status, printed = jobs("submission", spec, cwd=root)
    assert status == 0, printed
    return root, printed, pictures


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_image_that_cannot_be_decoded_has_a_row_of_zeros_and_is_named(submitted):
    root, printed, pictures = submitted
    rows = rows_of(root / "experiments" / "x" / "submission.csv")
    assert len(rows) == len(pictures)
    bad = pictures[1].rpartition("/")[2].removesuffix(".jpg")
    (row,) = [row for row in rows if row["ids"].removesuffix(".jpg") == bad]
    assert set(list(row.values())[1:]) == {"0"}
    assert f"1 images could not be scored and have 0 for every label: {row['ids']}" in printed
    numbers = [int("".join(filter(str.isdigit, row["ids"]))) for row in rows]
    assert numbers == sorted(numbers)  # the order of the source


def test_the_test_score_is_a_file_and_a_card_with_intervals(submitted):
    root, printed, _ = submitted
    found = json.loads((root / "experiments" / "x" / "test_metrics.json").read_text())
    metric = found["metrics"]["f1_micro"]
    assert metric["lo"] <= metric["value"] <= metric["hi"]
    assert found["images"] == 39
    assert printed.count("the true labels of these images are known") == 1
    assert "f1_micro, test" in (root / "experiments" / "x" / "report.html").read_text()


def test_another_submission_keeps_the_one_before_under_its_date(submitted):
    root, _, _ = submitted
    folder, spec = root / "experiments" / "x", root / "experiments" / "x.yaml"
    before = (folder / "submission.csv").read_bytes()
    assert jobs("submission", spec, cwd=root)[0] == 0
    assert list(folder.glob("submission-*.csv")) == []  # the same is not another one
    status, printed = jobs("submission", spec, "--set", "evaluate.threshold=0.01", cwd=root)
    assert status == 0, printed
    (kept,) = folder.glob("submission-*.csv")
    assert kept.read_bytes() == before != (folder / "submission.csv").read_bytes()
    assert f"the submission before is kept as {kept.name}" in printed
