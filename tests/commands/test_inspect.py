"""What a person sees before anything is trained: ten lines, and twelve images with their labels."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.contact_sheet import choose_rows
from pipeline.data.reading import read_data
from pipeline.errors import DataError
from tests.cells import jobs
from tests.conftest import data_spec, jpeg, write_zip

TABLE = "f,dog,tree\n" + "".join(f"im{i}.jpg,{i % 2},{int(i == 7)}\n" for i in range(1, 31))


def spec_of(tmp_path, labels=TABLE):
    files = {f"im{i}.jpg": jpeg(i) for i in range(1, 31)} | {"y.csv": labels}
    source = write_zip(tmp_path / "set.zip", files)
    (tmp_path / "experiments").mkdir(exist_ok=True)
    spec = tmp_path / "experiments" / "x.yaml"
    spec.write_text(f"data: {{source: {source}, size_px: 16, labels: {{format: onehot_csv, file: y.csv}}}}\n")
    return spec, source


def test_inspect_says_how_labels_were_read_and_draws_twelve_images(tmp_path):
    spec, _ = spec_of(tmp_path)
    status, printed = jobs("inspect", spec, cwd=tmp_path)
    assert status == 0, printed
    assert "2 labels: dog 15, tree 1" in printed
    assert "experiments/x/inspect.png" in printed
    with Image.open(tmp_path / "experiments/x/inspect.png") as opened:
        sheet_HWC = np.asarray(opened.convert("RGB"))
    tiles = [
        sheet_HWC[12 + row * 342 :][:240, 12 + column * 252 :][:, :240]
        for row in range(3)
        for column in range(4)
    ]
    assert all((tile != 255).any(axis=2).mean() > 0.5 for tile in tiles)
    assert not (tmp_path / "data" / "packed").exists()


def test_every_label_and_an_image_without_one_are_among_the_twelve(tmp_path):
    _, source = spec_of(tmp_path)
    read = read_data(data_spec(source, labels={"format": "onehot_csv", "file": "y.csv"}))
    rows = choose_rows(read)
    assert len(rows) == len(set(rows)) == 12
    assert read.labels_NK[rows].any(axis=0).all()
    assert not read.labels_NK[rows].any(axis=1).all()


@pytest.mark.parametrize("verb", ["plan", "wrangle"])
def test_plan_and_wrangle_say_what_was_understood_in_ten_lines_at_most(tmp_path, verb):
    spec, _ = spec_of(tmp_path)
    status, printed = jobs(verb, spec, cwd=tmp_path)
    assert status == 0, printed
    said = [line for line in printed.splitlines() if line.startswith("  ") and not line.startswith("  ok")]
    assert any("images: 30, 50.0 % without a label" in line for line in said)
    assert any("split: " in line for line in said)
    assert len(said) <= 12


def test_a_line_to_write_is_yaml_whatever_the_names_are(tmp_path):
    spec, source = spec_of(tmp_path, "f,dog,a: b\nim1.jpg,1,p\nim2.jpg,0,q\n")
    with pytest.raises(DataError, match=r'labels.ignore: \["a: b"\]'):
        read_data(data_spec(source, labels={"format": "onehot_csv", "file": "y.csv"}))
    status, printed = jobs("doctor", spec, cwd=tmp_path)
    assert status == 1
    assert "FAIL data: " in printed
