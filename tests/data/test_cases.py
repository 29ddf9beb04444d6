"""Layouts of data sets as people have them: each is read as it should be, or refused with the line to write."""

import json

import pytest
import yaml

from pipeline.data.reading import read_data
from pipeline.data.summary import summary
from pipeline.data.wrangle_report import build_report
from pipeline.errors import DataError
from pipeline.spec.reading import read_spec

# name -> what the shipped spec is answered with, the lines to write, and (without a file of the truth) some labels
REFUSED = {
    "celeba_txt": (
        r"write labels.format: celeba",
        {"labels": {"format": "celeba", "file": "list_attr_celeba.txt"}},
    ),
    "chexpert": (
        r"leave them out by labels.ignore: \[Sex, Age, Frontal/Lateral, AP/PA\].* hold -1.0 \(18x\), empty \(18x\)"
        r".*labels.false: \[0, -1.0, null\]",
        {
            "labels.ignore": ["Sex", "Age", "Frontal/Lateral", "AP/PA"],
            "labels.false": [0, -1, None],
            "labels.none": "No Finding",
        },
    ),
    "empty_image_list": (r"list.txt: holds no entry", {"image_list": None}),
    "label_space_default_sep": (r'write labels.separator: ","', {"labels.separator": ","}),
    "nuswide_imagelist": (
        r"labels.format: vectors, and as labels.order the file",
        {
            "image_list": None,
            "labels": {"format": "vectors", "files": "Labels_{label}.txt", "order": "Imagelist.txt"},
        },
    ),
    "nuswide_silent": (r"is a 0 or 1 for each of 24 images, not a list of ids", None),
    "roboflow_coco": (r"no image has the label 'animals'.*data.labels.empty: drop", {"labels.empty": "drop"}),
    "semicolon_list_commas": (
        r"write data.labels.delimiter: semicolon",
        {"labels.delimiter": "semicolon", "labels.separator": ","},
    ),
    "voc_main": (
        r"write labels.format: voc",
        {"labels": {"format": "voc", "files": "ImageSets/Main/{label}_trainval.txt"}},
    ),
}
# name -> lines to write, or {}, and what is said of it
READ = {
    "extra_meta_01col_is_train": ({"labels.ignore": "is_train"}, []),
    "hf_metadata_csv": ({}, []),
    "idlist_classes_txt_lists": ({"labels.except": ["train", "val"]}, []),
    "mixed_ext_ids": ({"images": "images/{id}.*"}, []),
    "nested_same_names": ({}, []),
    "nih_2017": ({}, ["column 12 has no name and is skipped"]),
    "openimages_long": (
        {},
        ["the column 'Confidence' decides: 24 rows with at least 1 are present, 24 absent"],
    ),
    "pandas_index": ({}, ["column 1 has no name and is skipped"]),
    "png16_12bit": ({}, []),
    "same_names_two_folders": ({}, ["24 references name images that are not chosen"]),
    "some_JPG_left_out_silently": ({}, []),
}


def case(shared, tmp_path, name, changes):
    """The shipped spec of a case with some keys changed."""
    tree = yaml.safe_load((shared / "cases/data" / f"{name}.yaml").read_text())
    for key, value in (changes or {}).items():
        *above, last = key.split(".")
        node = tree["data"]
        for part in above:
            node = node[part]
        node[last] = value
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return read_spec(path).spec.data


def labels_of(data):
    return {
        image.name: sorted(label for label, present in zip(data.labels, row, strict=True) if present)
        for image, row in zip(data.images, data.labels_NK, strict=True)
    }


def agrees_with_truth(shared, name, data):
    truth = shared / "cases/data" / f"{name}.truth.json"
    if truth.exists():
        expected = {image: sorted(labels) for image, labels in json.loads(truth.read_text()).items()}
        assert labels_of(data) == expected
    assert len(data.images) == 24


def test_every_case_is_here(shared):
    names = {path.stem for path in (shared / "cases/data").glob("*.yaml")}
    assert names == REFUSED.keys() | READ.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_with_the_line_to_write(shared, tmp_path, name):
    error, changes = REFUSED[name]
    with pytest.raises(DataError, match=rf"(?s){error}"):
        read_data(case(shared, tmp_path, name, {}))
    if changes is not None:
        agrees_with_truth(shared, name, read_data(case(shared, tmp_path, name, changes)))


@pytest.mark.parametrize("name", READ)
def test_a_case_is_read_as_it_should_be(shared, tmp_path, name):
    changes, notes = READ[name]
    data = read_data(case(shared, tmp_path, name, changes))
    agrees_with_truth(shared, name, data)
    assert len(data.notes) == len(notes)
    assert all(note in said for said, note in zip(data.notes, notes, strict=True))
    lines = summary(build_report(data)).splitlines()
    assert len(lines) <= 10
    assert lines[1].startswith(f"{len(data.labels)} labels: {data.labels[0]} ")


def test_what_cannot_be_guessed_is_said(shared, tmp_path):
    for name, said in [
        ("extra_meta_01col_is_train", "write labels.except: [is_train]"),
        ("idlist_classes_txt_lists", "write labels.except: [train, val]"),
    ]:
        data = read_data(case(shared, tmp_path, name, {}))
        assert said in summary(build_report(data))


def test_images_that_no_pattern_matches_are_counted_and_named(shared, tmp_path):
    data = read_data(case(shared, tmp_path, "mixed_ext_ids", {"images": "images/{id}.jpg"}))
    assert 0 < len(data.images) < 24
    assert f"{24 - len(data.images)} image files match no name pattern: images/im" in summary(
        build_report(data)
    )


def test_chexpert_by_its_paths(shared, tmp_path):
    data = read_data(case(shared, tmp_path, "chexpert", REFUSED["chexpert"][1]))
    assert data.labels == ["Edema", "Pneumonia"]
    assert "No Finding: means no label" in data.notes[0]
    row = [image.member for image in data.images].index(
        "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    )
    assert data.labels_NK[row].tolist() == [0, 1]
