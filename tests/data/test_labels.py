"""Label formats: their order, what is wrong in them, and random tables read back."""

import io
import json
import os
import tarfile
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import sources
from pipeline.data.labels import read_labels
from pipeline.data.labels import table as table_module
from pipeline.data.reading import read_data
from pipeline.data.sources import open_source
from pipeline.errors import DataError
from tests.conftest import data_spec, write_zip

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
LOOSE = {"undecodable": 1.0, "without_row": 1.0, "unknown_references": 1.0}


def read(tmp_path, contents, images=IMAGES, pattern="im{id}.jpg", **labels):
    path = write_zip(tmp_path / "a.zip", images | contents)
    return read_data(data_spec(path, images=pattern, labels=labels, set_aside=LOOSE))


def labels_of(data):
    """Image name -> its labels."""
    return {
        image.name: [label for label, present in zip(data.labels, row, strict=True) if present]
        for image, row in zip(data.images, data.labels_NK, strict=True)
    }


ROWS = {"im1.jpg": ["dog"], "im2.jpg": ["zebra"], "im3.jpg": []}


@pytest.mark.parametrize(
    ("files", "labels", "order"),
    [
        ({"annotations/zebra.txt": "2\n", "annotations/dog.txt": "im1.jpg\r\n\n"}, {"format": "id_lists"}, 1),
        (
            {"y.csv": "ids,zebra,dog\nim1.jpg,0,1\nim2.jpg,1.0,\nim3.jpg,0,false\n"},
            {"format": "onehot_csv", "file": "y.csv", "false": (0, "false", None)},
            0,
        ),
        ({"y.csv": "image,tags\n1,dog dog\n2,zebra\n3,\n"}, {"format": "list_csv", "file": "y.csv"}, 1),
        ({"y.tsv": "image\ttags\n1\tdog\n2\tzebra\n3\t\n"}, {"format": "list_csv", "file": "y.tsv"}, 1),
        (
            {"y.csv": "image;tags\n1;['dog']\n2;[\"zebra\"]\n3;[]\n"},
            {"format": "list_csv", "file": "y.csv", "delimiter": "semicolon"},
            1,
        ),
        (
            {"y.csv": "1,dog,\n2,,zebra\n3,,\n"},
            {"format": "list_csv", "file": "y.csv", "header": False, "labels_column": ("2", "3")},
            1,
        ),
        (
            {"y.csv": "1,0,1\n2,1,0\n3,0,0\n"},
            {"format": "onehot_csv", "file": "y.csv", "header": ("id", "zebra", "dog")},
            0,
        ),
        (
            {"y.csv": "id,name,Confidence\n1,dog,1\n1,zebra,0\n2,zebra,1\n3,dog,0\n"},
            {"format": "list_csv", "file": "y.csv"},
            1,
        ),
        (
            {"y.csv": "id,name,p\n1,dog,.9\n1,zebra,.2\n2,zebra,.7\n3,dog,.1\n"},
            {"format": "list_csv", "file": "y.csv", "confidence_column": "p", "min_confidence": 0.7},
            1,
        ),
        ({"y.json": json.dumps(COCO)}, {"format": "coco", "file": "y.json"}, 0),
        (
            {
                "m.jsonl": '{"file_name": "im1.jpg", "labels": ["dog"]}\n{"file_name": "im2.jpg", "labels": ["zebra"]}'
                '\n\n{"file_name": "im3.jpg", "labels": []}'
            },
            {"format": "jsonl", "file": "m.jsonl"},
            1,
        ),
        (
            {
                "m.jsonl": '{"f": 1, "o": {"c": {"dog": 1, "zebra": 0}}}\n{"f": "2", "o": {"c": {"zebra": true}}}\n'
                '{"f": 3, "o": {"c": []}}'
            },
            {"format": "jsonl", "file": "m.jsonl", "id_key": "f", "labels_key": "o.c"},
            1,
        ),
        (
            {
                "Main/zebra_val.txt": "im1 -1\nim2  1\nim3  0\n",
                "Main/dog_val.txt": "im1  1\nim2 -1\nim3  0\n",
            },
            {"format": "voc", "files": "Main/{label}_val.txt"},
            1,
        ),
        (
            {"list.txt": "3\nzebra dog \nim1.jpg -1  1\nim2.jpg  1 -1\nim3.jpg -1 -1\n"},
            {"format": "celeba", "file": "list.txt"},
            0,
        ),
        (
            {"L_zebra.txt": "0\n0\n1\n", "L_dog.txt": "0\n1\n0\n", "L.txt": "im3.jpg\nim1.jpg\nim2.jpg\n"},
            {"format": "vectors", "files": "L_{label}.txt", "order": "L.txt"},
            1,
        ),
    ],
)
def test_each_format_gives_the_same_labels_in_its_own_order(tmp_path, files, labels, order):
    data = read(tmp_path, files, **labels)
    assert data.labels == [["zebra", "dog"], ["dog", "zebra"]][order]
    assert labels_of(data) == ROWS
    assert data.problems.unknown == []
    assert data.labels_NK.dtype == np.uint8


def test_a_folder_per_label(tmp_path):
    images = {"photos/dog/1.jpg": b"", "photos/zebra/1.JPG": b"", "photos/zebra/2.png": b""}
    data = read(tmp_path, {}, images, "photos/{id}.*", format="folders")
    assert labels_of(data) == {"1.jpg": ["dog"], "1.JPG": ["zebra"], "2.png": ["zebra"]}
    assert [image.id for image in data.images] == ["dog/1", "zebra/1", "zebra/2"]
    data = read(tmp_path, {}, images, "photos/{id}.*", format="folders", level=2)
    assert data.labels == ["photos"]
    with pytest.raises(DataError, match=r"has no folder 3 above it"):
        read(tmp_path, {}, images, "photos/{id}.*", format="folders", level=3)


def test_label_names_and_their_pattern_are_the_spec_s(tmp_path):
    data = read(tmp_path, {"y/dog_r1.txt": "1", "y/dog.txt": "2"}, format="id_lists", files="{label}_r1.txt")
    assert labels_of(data) == {"im1.jpg": ["dog"], "im2.jpg": [], "im3.jpg": []}


def test_references_to_no_image_are_listed(tmp_path):
    data = read(tmp_path, {"annotations/dog.txt": "1\n99\n"}, format="id_lists")
    assert [entry.rpartition("/")[2] for entry in data.problems.unknown] == ["dog.txt: 99"]
    assert data.labels_NK.sum() == 1


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    data = read(tmp_path, {"annotations/dog.txt": "\ufeff1\n"}, format="id_lists")
    assert data.problems.unknown == []
    assert data.labels_NK[0, 0] == 1


ONEHOT = {"format": "onehot_csv", "file": "y.csv"}
LISTED = {"format": "list_csv", "file": "y.csv"}


@pytest.mark.parametrize(
    ("labels", "text", "error"),
    [
        (
            ONEHOT | {"id_column": "image"},
            "ids,dog\n1,0\n",
            r"y.csv: has no column 'image', its columns are ids, dog",
        ),
        (
            ONEHOT,
            "ids;dog\n1;0\n",
            r"y.csv:1: the header has the one column 'ids;dog'; write data.labels.delimiter: semicolon",
        ),
        (ONEHOT, "ids\tdog\n1\t0\n", r"write data.labels.delimiter: tab"),
        (
            ONEHOT,
            "ids,dog\n1,0\n2,2\n",
            r"columns dog hold 2 \(1x\), the first in line 3; say what they mean by labels.true and labels.false",
        ),
        (
            ONEHOT,
            "ids,dog\n1,\n2,1\n",
            r"columns dog hold empty \(1x\).*labels.false: \[0, null\] \(unknown and soft labels are not",
        ),
        (
            ONEHOT,
            "ids,dog,sex\n1,0,f\n2,-1,m\n3,1,m\n",
            r"1 columns hold no 0 and 1 \(sex: m \(2x\), f \(1x\)\); leave them out by labels.ignore: \[sex\]. "
            r"And columns dog hold -1",
        ),
        (
            ONEHOT,
            "ids,dog,tree\n1,x,\n2,,\n3,,x\n",
            r"y.csv: columns dog, tree hold empty \(4x\), x \(2x\), as spreadsheets do; write labels.true: \[x\], "
            r"labels.false: \[null\] if they say who has it$",
        ),
        (
            ONEHOT,
            "ids,dog,tree,sex\n1,yes,1,f\n2,,0,m\n3,no,0,m\n4,no,0,m\n",
            r"write labels.true: \[1, \"yes\"\], labels.false: \[0, \"no\", null\] if they say who has it. "
            r"And 1 columns hold no 0 and 1 \(sex",
        ),
        (ONEHOT, "ids,tags\n1,dog tree\n2,dog\n", r"or, if they list labels, write labels.format: list_csv"),
        (ONEHOT, "ids,dog\n1,0,1\n", r"y.csv:2: 3 columns under a header of 2"),
        (ONEHOT, "ids,dog,dog\n1,0,1\n", r"y.csv:1: the header has the column 'dog' twice"),
        (ONEHOT, "ids,dog\n", r"y.csv: holds no rows below its header"),
        (ONEHOT, "", r"y.csv: is empty"),
        (
            ONEHOT,
            "im1.jpg,1,0\nim2.jpg,0,1\n",
            r"y.csv:1: the header holds values \(im1.jpg: 1, 0\), so it is a row",
        ),
        (
            ONEHOT | {"header": False},
            "im1.jpg,1,0\n",
            r"its labels have no names; write them as labels.header",
        ),
        (
            ONEHOT | {"header": ("id", "dog")},
            "im1.jpg,1,0\n",
            r"y.csv:1: 3 columns, but data.labels.header names 2",
        ),
        (ONEHOT | {"ignore": ("cat",)}, "ids,dog\n1,0\n", r"has no column 'cat'"),
        (ONEHOT | {"ignore": ("d*",)}, "ids,dog\n1,0\n", r"has no column of labels"),
        (ONEHOT, "24\nim1.jpg 1 -1\n", r"if it is CelebA's list, write labels.format: celeba"),
        (
            ONEHOT,
            'ids,dog\n1,"' + "x" * 140_000,
            r"y.csv:2: field larger than field limit .*is a quote left open",
        ),
        (LISTED | {"labels_column": "tags"}, "image,labels\n1,dog\n", r"y.csv: has no column 'tags'"),
        (LISTED, "image\n1\n", r"y.csv:1: the header has only 1 column"),
        (
            LISTED,
            "im1.jpg,dog\nim2.jpg,dog\n",
            r"y.csv:1: the header names the image 'im1.jpg', so it is a row",
        ),
        (
            LISTED,
            "id,l\n1,dog|cat\n2,cat\n3,dog|cat\n",
            r"2 of 3 cells hold '\|', e.g. 'dog\|cat', and labels are parted by ' '; write labels.separator: \"\|\"",
        ),
        (LISTED | {"separator": ";"}, 'id,l\n1,"a,b"\n2,"b,c"\n', r"write labels.separator: \",\""),
        (LISTED, "id,l\n1,dog\n2,nan\n", r"y.csv:3: the label 'nan' looks like no name"),
        (LISTED, "id,l\n1,\"{'dog'}\"\n", r"the label \"\{'dog'\}\" looks like no name"),
        (
            LISTED,
            "id,l\n1,['dog' 'cat']\n",
            r"y.csv:2: \"\['dog' 'cat'\]\" begins like a list and is none of Python or JSON",
        ),
        (
            LISTED,
            "id,l,Confidence\n1,dog,0.8\n",
            r"y.csv:2: column 'Confidence' holds 0.8; write from which confidence",
        ),
        (
            LISTED | {"min_confidence": 0.5},
            "id,l,p\n1,dog,0.8\n",
            r"has no column 'Confidence'; write labels.confidence_column",
        ),
        (
            LISTED,
            "id,l\nim1.jpg,dog cat\n1,dog\n",
            r"(?s)1 images have rows that differ.*im1.jpg: \S+y.csv:2 \(im1.jpg: cat, dog\) and \S+y.csv:3 \(1: dog\)",
        ),
        (
            LISTED | {"only": "dgo"},
            "id,l\n1,dog\n",
            r"data.labels.only names the label 'dgo', which is not there; did you mean 'dog'\?",
        ),
        (LISTED | {"except": "*"}, "id,l\n1,dog\n", r"no label is left"),
        ({"format": "coco", "file": "y.csv"}, "{}", r"not a COCO instances file \(no key 'images'\)"),
        ({"format": "coco", "file": "y.csv"}, "nonsense", r"not a COCO instances file"),
        ({"format": "coco", "file": "z.json"}, "", r"no label file is named 'z.json'"),
        (
            {"format": "coco", "file": "../y.csv"},
            "",
            r"'../y.csv' is looked for inside it; write the file's folder as data.labels.source",
        ),
        (
            {"format": "id_lists", "files": "labels/{label}.txt"},
            "",
            r"no label file is named 'labels/\{label\}.txt'",
        ),
        (
            {"format": "id_lists", "files": "{label}.csv"},
            "0\n1\n0\n",
            r"is a 0 or 1 for each of 3 images.*labels.format: vectors",
        ),
        (
            {"format": "id_lists", "files": "{label}.csv"},
            "im1 -1\nim2 1\n",
            r"as Pascal VOC does; write labels.format: voc",
        ),
        (
            {"format": "voc", "files": "{label}.csv"},
            "im1 2\n",
            r"y.csv:1: 'im1 2' is not an id and -1, 0 or 1",
        ),
        (
            {"format": "celeba", "file": "y.csv"},
            "2\ndog cat\nim1.jpg 1 -1\n",
            r"has 1 rows, and its first line says 2",
        ),
        (
            {"format": "celeba", "file": "y.csv"},
            "1\ndog cat\nim1.jpg 1 0\n",
            r"y.csv:3: .* is not a file name and 2 values",
        ),
        (
            {"format": "jsonl", "file": "y.csv"},
            '{"file_name": "im1.jpg", "label": 1}',
            r"y.csv:1: 'labels' is null, not a list of labels; correct labels.labels_key "
            r"\(its keys are 'file_name', 'label'\)",
        ),
        ({"format": "jsonl", "file": "y.csv"}, "{", r"y.csv:1: not JSON"),
        (
            {"format": "vectors", "files": "{label}.csv", "order": "im1.jpg"},
            "1\n0\n",
            r"holds 2 values for the 0 images of im1.jpg",
        ),
    ],
)
def test_bad_label_files_are_named_with_line_and_remedy(tmp_path, labels, text, error):
    with pytest.raises(DataError, match=error):
        read(tmp_path, {"y.csv": text}, **labels)


def test_a_binary_label_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"dog.txt: not UTF-8 text"):
        read(tmp_path, {"annotations/dog.txt": b"\xff\xfe1\x00"}, format="id_lists")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"annotations": [{"image_id": 7, "category_id": 99}]}, r"category 99, which is not listed"),
        (
            {"images": [*COCO["images"], {"id": 7, "file_name": "im9.jpg"}]},
            r"two images have one id.*id 7: 'im1.jpg' and 'im9.jpg'",
        ),
        (
            {"categories": [*COCO["categories"], {"id": 1, "name": "cat"}]},
            r"two categories have one id.*id 1: 'dog' and 'cat'",
        ),
        (
            {"categories": [*COCO["categories"], {"id": 2, "name": "dog"}]},
            r"two categories have the name 'dog'",
        ),
    ],
)
def test_coco_refuses_what_could_mean_two_things(tmp_path, change, error):
    with pytest.raises(DataError, match=error):
        read(tmp_path, {"y.json": json.dumps(COCO | change)}, format="coco", file="y.json")


def test_coco_with_back_slashes_and_negatives(tmp_path):
    images = [{"id": i, "file_name": f"C:\\photos\\im{i}.jpg"} for i in (1, 2, 3)]
    content = {
        "images": images,
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 1}],
    }
    data = read(tmp_path, {"y.json": json.dumps(content)}, format="coco", file="y.json")
    assert labels_of(data) == {"im1.jpg": ["dog"], "im2.jpg": [], "im3.jpg": []}


# ---------------------------------------------------------------- which labels count


LISTS = {"y.csv": "id,l\n1,dog cat\n2,cow\n3,nothing\n"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            {"only": ("cow", "dog"), "none": "nothing"},
            {"im1.jpg": ["dog"], "im2.jpg": ["cow"], "im3.jpg": []},
        ),
        ({"except": ("c*",)}, {"im1.jpg": ["dog"], "im2.jpg": [], "im3.jpg": ["nothing"]}),
        ({"none": "nothing"}, {"im1.jpg": ["cat", "dog"], "im2.jpg": ["cow"], "im3.jpg": []}),
        (
            {"rename": {"dog": "pet", "cat": "pet"}, "none": "nothing"},
            {"im1.jpg": ["pet"], "im2.jpg": ["cow"], "im3.jpg": []},
        ),
    ],
)
def test_labels_are_chosen_joined_and_dropped(tmp_path, names, expected):
    data = read(tmp_path, LISTS, **LISTED, **names)
    assert labels_of(data) == expected


def test_only_sets_the_order(tmp_path):
    assert read(tmp_path, LISTS, **LISTED, only=("nothing", "c*", "dog")).labels == [
        "nothing",
        "cat",
        "cow",
        "dog",
    ]


def test_labels_that_differ_by_their_writing_are_said(tmp_path):
    data = read(tmp_path, {"y.csv": "id,Hot dog,hot_dog\n1,1,0\n2,0,1\n3,0,0\n"}, **ONEHOT)
    assert data.notes == [
        "the labels 'Hot dog' and 'hot_dog' differ by their writing only; labels.rename joins them"
    ]


def test_labels_nobody_has_are_all_named_or_dropped(tmp_path):
    text = {"y.csv": "id,dog,cat,cow\n1,1,0,0\n2,0,0,0\n"}
    with pytest.raises(DataError, match=r"no image has 2 labels: 'cat', 'cow'; .*data.labels.empty: drop"):
        read(tmp_path, text, **ONEHOT)
    data = read(tmp_path, text, **ONEHOT, empty="drop")
    assert data.labels == ["dog"]
    assert data.notes == ["2 labels that no image has are dropped: cat, cow"]


def test_equal_rows_are_merged_and_counted(tmp_path):
    data = read(tmp_path, {"y.csv": "id,dog\n1,1\nim1.jpg,1\n2,0\n"}, **ONEHOT)
    assert data.notes == ["1 rows repeat another row of the same image and are merged"]
    assert labels_of(data) == {"im1.jpg": ["dog"], "im2.jpg": []}


def test_columns_without_a_name_and_trailing_commas_are_skipped_and_said(tmp_path):
    data = read(tmp_path, {"y.csv": ",id,dog,\n0,1,1,,\n1,2,0,,\n"}, **ONEHOT)
    assert labels_of(data) == {"im1.jpg": ["dog"], "im2.jpg": []}
    assert data.notes == [
        "column 1, 4 has no name and is skipped",
        "2 rows end in a delimiter; the empty cell behind it is skipped",
    ]


def test_a_column_that_is_seldom_a_label_is_said_and_can_be_left_out(tmp_path):
    text = {"y.csv": "id,dog,is_train\n1,1,1\n2,0,1\n"}
    assert "is_train" in read(tmp_path, text, **ONEHOT).notes[0]
    data = read(tmp_path, text, **ONEHOT, ignore="is_*")
    assert (data.labels, data.notes) == (["dog"], [])


def test_a_confidence_column_says_that_it_decides(tmp_path):
    data = read(tmp_path, {"y.csv": "id,l,Confidence\n1,dog,1\n2,dog,0\n"}, **LISTED)
    assert data.notes == ["the column 'Confidence' decides: 1 rows with at least 1 are present, 1 absent"]


def test_difficult_objects_are_present_where_the_spec_says_so(tmp_path):
    text = {"dog_val.txt": "im1 1\nim2 0\nim3 -1\n"}
    data = read(tmp_path, text, format="voc", files="{label}_val.txt", difficult="present")
    assert labels_of(data) == {"im1.jpg": ["dog"], "im2.jpg": ["dog"], "im3.jpg": []}
    assert data.notes == ["1 entries are 0 (difficult): present, as labels.difficult says"]


# ---------------------------------------------------------------- random tables


names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "P", "S"]), min_size=1, max_size=8)
words = names.filter(
    lambda name: name.casefold() not in ("nan", "none", "null", "na", "train", "test", "1", "0")
)


@st.composite
def tables(draw):
    labels = draw(st.lists(words, min_size=1, max_size=4, unique_by=lambda name: name.casefold()))
    count = draw(st.integers(2, 6))
    rows = [sorted(draw(st.sets(st.sampled_from(labels)))) for _ in range(count)]
    rows[0] = sorted(labels)
    return labels, {f"im{i}.jpg": row for i, row in enumerate(rows, 1)}


def _quoted(text):
    return '"' + text.replace('"', '""') + '"'


def written(kind, labels, rows):
    """The table in a format: (files, the spec's labels section)."""
    if kind == "onehot_csv":
        lines = [",".join(["file", *map(_quoted, labels)])]
        lines += [
            ",".join([image, *("1" if label in row else "0" for label in labels)])
            for image, row in rows.items()
        ]
        return {"y.csv": "\n".join(lines)}, {"file": "y.csv"}
    if kind == "list_csv":
        lines = ["file;tags", *(f"{image};{'|'.join(row)}" for image, row in rows.items())]
        return {"y.csv": "\n".join(lines)}, {"file": "y.csv", "delimiter": "semicolon", "separator": "|"}
    if kind == "jsonl":
        lines = [json.dumps({"file_name": image, "labels": row}) for image, row in rows.items()]
        return {"m.jsonl": "\n".join(lines)}, {"file": "m.jsonl"}
    if kind == "coco":
        ids = {image: i for i, image in enumerate(rows)}
        annotations = [
            {"image_id": ids[image], "category_id": labels.index(label)}
            for image, row in rows.items()
            for label in row
        ]
        categories = [{"id": k, "name": label} for k, label in enumerate(labels)]
        images = [{"id": i, "file_name": image} for image, i in ids.items()]
        return {
            "c.json": json.dumps({"images": images, "categories": categories, "annotations": annotations})
        }, {"file": "c.json"}
    if kind == "celeba":
        lines = [str(len(rows)), " ".join(labels)]
        lines += [
            " ".join([image, *("1" if label in row else "-1" for label in labels)])
            for image, row in rows.items()
        ]
        return {"l.txt": "\n".join(lines)}, {"file": "l.txt"}
    values = {"id_lists": lambda row, label: None, "voc": lambda row, label: "1" if label in row else "-1"}
    files = {}
    for label in labels:
        if kind == "id_lists":
            files[f"a/{label}.txt"] = "\n".join(image for image, row in rows.items() if label in row)
        elif kind == "voc":
            files[f"a/{label}.txt"] = "\n".join(
                f"{image[:-4]} {values[kind](row, label)}" for image, row in rows.items()
            )
        else:
            files[f"a/{label}.txt"] = "\n".join("1" if label in row else "0" for row in rows.values())
    order = {"o.txt": "\n".join(rows)} if kind == "vectors" else {}
    return files | order, {"files": "a/{label}.txt"} | ({"order": "o.txt"} if order else {})


@pytest.mark.parametrize(
    "kind", ["onehot_csv", "list_csv", "jsonl", "coco", "celeba", "id_lists", "voc", "vectors"]
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(table=tables())
def test_a_random_table_is_read_back_from_every_format(tmp_path, kind, table):
    labels, rows = table
    files, section = written(kind, labels, rows)
    data = read(tmp_path, files, dict.fromkeys(rows, b""), format=kind, **section)
    assert {name: sorted(found) for name, found in labels_of(data).items()} == rows
    assert sorted(data.labels) == sorted(labels)


# ---------------------------------------------------------------- tables of any size


def in_source(kind, folder, body):
    """A folder, zip or tar with a table and one image."""
    files = {"y.csv": body, "im1.jpg": b""}
    if kind == "folder":
        folder = folder / "source"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder
    if kind == "zip":
        return write_zip(folder / "a.zip", files)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return folder / "a.tar"


def table(path, kind="onehot_csv"):
    """What is read of the table of a source."""
    spec = data_spec(path, labels={"format": kind, "file": "y.csv"})
    with closing(open_source(path)) as source:
        return read_labels(source, spec.labels, [])


KINDS = ["folder", "zip", "tar"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["onehot_csv", "list_csv"])
def test_a_table_larger_than_a_file_may_be_is_read_in_a_stream(tmp_path, monkeypatch, kind, form):
    monkeypatch.setattr(sources, "MAX_MEMBER_BYTES", 1000)
    cells = ("0", "1") if form == "onehot_csv" else ("tree", "dog")
    body = "\ufeffid,dog\r\n" + "".join(f'"im{i}.jpg",{cells[i % 2]}\r\n' for i in range(5000))
    found = table(in_source(kind, tmp_path, body.encode()), form)
    assert found.references == [f"im{i}.jpg" for i in range(5000)]
    dog = found.labels.index("dog")
    dogs = [r for r, k in zip(found.row_P, found.label_P, strict=True) if k == dog]
    assert dogs == list(range(1, 5000, 2))
    assert found.place_of(4999).endswith("y.csv:5001")


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_no_text_far_into_a_table_are_refused_with_their_place(tmp_path, kind):
    body = b"id,dog\n" + b"im1.jpg,1\n" * 5000
    path = in_source(kind, tmp_path, body + b"im\xff.jpg,1\n")
    with pytest.raises(
        DataError, match=rf"y.csv: not UTF-8 text \(invalid start byte at byte {len(body) + 2}\)"
    ):
        table(path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_table_whose_archive_is_damaged_or_cut_short_is_refused(tmp_path, kind):
    path = in_source(kind, tmp_path, b"id,dog\n" + b"im1.jpg,1\n" * 5000)
    with closing(open_source(path)) as source:
        labels = data_spec(path, labels={"format": "onehot_csv", "file": "y.csv"}).labels
        if kind == "zip":
            body = path.read_bytes()
            path.write_bytes(body.replace(b"im1.jpg,1\n", b"im1.jpg,0\n", 1))
        else:
            os.truncate(path, 20_000)
        with pytest.raises(DataError, match=r"y.csv: cannot be read: .*; copy it here again"):
            read_labels(source, labels, [])


def test_a_table_of_one_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "_LINE", 1000)
    with pytest.raises(DataError, match=r"y.csv: a line has 1,000 characters or more; it is no table"):
        table(in_source("zip", tmp_path, b"id,dog\n" + b"1" * 5000))


@pytest.mark.parametrize("form", ["onehot_csv", "list_csv"])
def test_a_row_of_a_large_table_takes_few_bytes(tmp_path, form):
    """Its reference, line and labels: not its text, nor that of the whole file several times over."""
    rows, labels = 20_000, [f"label{k}" for k in range(100)]
    if form == "onehot_csv":
        body = f"id,{','.join(labels)}\n" + "".join(f"im{i}.jpg,1{',0' * 99}\n" for i in range(rows))
    else:
        body = "id,labels\n" + "".join(f"im{i}.jpg,{labels[i % 100]} {labels[i % 50]}\n" for i in range(rows))
    path = in_source("zip", tmp_path, body.encode())
    tracemalloc.start()
    table(path, form)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / rows < 200
