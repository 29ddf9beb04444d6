"""Four label formats, their order, and what is wrong in them."""

import json

import numpy as np
import pytest

from pipeline.data.labels import read_labels, to_multi_hot
from pipeline.data.sources import finder, list_images, open_source
from pipeline.errors import DataError
from pipeline.spec import DataSpec
from tests.conftest import write_zip

IMAGES = {f"im{i}.jpg": b"" for i in (1, 2, 3)}
COCO = {
    "images": [
        {"id": 7, "file_name": "im1.jpg"},
        {"id": 8, "file_name": "im2.jpg"},
        {"id": 9, "file_name": "im3.jpg"},
    ],
    "categories": [{"id": 3, "name": "zebra"}, {"id": 1, "name": "dog"}],
    "annotations": [
        {"image_id": 7, "category_id": 1},
        {"image_id": 7, "category_id": 1},
        {"image_id": 8, "category_id": 3},
    ],
}


def read(tmp_path, contents, **labels):
    path = write_zip(tmp_path / "a.zip", IMAGES | contents)
    spec = DataSpec.model_validate({"source": str(path), "labels": labels})
    source = open_source(path)
    table = read_labels(source, spec.labels)
    return table, *to_multi_hot(table, 3, finder(list_images(source, "im{id}.jpg")[0]))


@pytest.mark.parametrize(
    ("files", "labels", "order"),
    [
        ({"annotations/zebra.txt": "2\n", "annotations/dog.txt": "im1.jpg\r\n\n"}, {}, ["dog", "zebra"]),
        (
            {"y.csv": "ids,zebra,dog\nim1.jpg,0,1\nim2.jpg,1.0,\nim3.jpg,0,false\n"},
            {"file": "y.csv"},
            ["zebra", "dog"],
        ),
        ({"y.csv": "image,tags\n1,dog dog\n2,zebra\n3,\n"}, {"file": "y.csv"}, ["dog", "zebra"]),
        ({"y.json": json.dumps(COCO)}, {"file": "y.json"}, ["zebra", "dog"]),
    ],
    ids=["id_lists", "onehot_csv", "list_csv", "coco"],
)
def test_each_format_gives_the_same_labels_in_its_own_order(tmp_path, request, files, labels, order):
    kind = request.node.callspec.id
    table, labels_NK, unknown = read(tmp_path, files, format=kind, **labels)
    assert table.labels == order
    assert labels_NK[:, order.index("dog")].tolist() == [1, 0, 0]
    assert labels_NK[:, order.index("zebra")].tolist() == [0, 1, 0]
    assert unknown == []
    assert labels_NK.dtype == np.uint8


def test_label_names_and_their_pattern_are_the_spec_s(tmp_path):
    table, _, _ = read(
        tmp_path, {"y/dog_r1.txt": "1", "y/dog.txt": "2"}, format="id_lists", files="{label}_r1.txt"
    )
    assert table.images_by_label == {"dog": ["1"]}


def test_references_to_no_image_are_returned(tmp_path):
    _, labels_NK, unknown = read(tmp_path, {"annotations/dog.txt": "1\n99\n"}, format="id_lists")
    assert unknown == [("dog", "99")]
    assert labels_NK.sum() == 1


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    _, labels_NK, unknown = read(tmp_path, {"annotations/dog.txt": "\ufeff1\n"}, format="id_lists")
    assert unknown == []
    assert labels_NK[0, 0] == 1


ONEHOT = {"format": "onehot_csv", "file": "y.csv"}
LISTED = {"format": "list_csv", "file": "y.csv"}


@pytest.mark.parametrize(
    ("labels", "text", "error"),
    [
        (
            ONEHOT | {"id_column": "image"},
            "ids,dog\n1,0\n",
            r"y.csv:1: the header has no column 'image', it is 'ids,dog'",
        ),
        (
            ONEHOT,
            "ids;dog\n1;0\n",
            r"y.csv:1: the header has the one column 'ids;dog'; separate columns by commas",
        ),
        (ONEHOT, "ids,dog\n1,0\n2,2\n", r"y.csv:3: column 'dog' holds '2'; write 0 or 1"),
        (ONEHOT, "ids,dog\n1,0\n1,1\n", r"y.csv:3: 1 has a row already, in line 2"),
        (ONEHOT, "ids,dog\n1,0,1\n", r"y.csv:2: 3 columns under a header of 2"),
        (ONEHOT, "ids,dog,dog\n1,0,1\n", r"y.csv:1: the header has the column 'dog' twice"),
        (ONEHOT, "ids,dog,\n1,0,1\n", r"y.csv:1: the header has a column without a name"),
        (ONEHOT, "ids,dog\n", r"y.csv: holds no rows below its header"),
        (ONEHOT, "", r"y.csv: holds no rows"),
        (
            ONEHOT,
            'ids,dog\n1,"' + "x" * 140_000,
            r"y.csv:2: field larger than field limit .*is a quote left open",
        ),
        (
            LISTED | {"labels_column": "tags"},
            "image,labels\n1,dog\n",
            r"y.csv:1: the header has no column 'tags'",
        ),
        (LISTED, "image\n1\n", r"y.csv:1: the header has only 1 column"),
        ({"format": "coco", "file": "y.csv"}, "{}", r"not a COCO instances file \(no key 'images'\)"),
        ({"format": "coco", "file": "y.csv"}, "nonsense", r"not a COCO instances file"),
        ({"format": "coco", "file": "z.json"}, "", r"no label file is named 'z.json'"),
        (
            {"format": "id_lists", "files": "labels/{label}.txt"},
            "",
            r"no label file is named 'labels/\{label\}.txt'",
        ),
    ],
)
def test_bad_label_files_are_named_with_line_and_remedy(tmp_path, labels, text, error):
    with pytest.raises(DataError, match=error):
        read(tmp_path, {"y.csv": text}, **labels)


def test_a_binary_label_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"dog.txt: not UTF-8 text"):
        read(tmp_path, {"annotations/dog.txt": b"\xff\xfe1\x00"}, format="id_lists")


def test_coco_refuses_a_category_that_is_not_listed(tmp_path):
    broken = COCO | {"annotations": [{"image_id": 7, "category_id": 99}]}
    with pytest.raises(DataError, match="category 99, which is not listed"):
        read(tmp_path, {"y.json": json.dumps(broken)}, format="coco", file="y.json")
