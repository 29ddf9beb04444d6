"""Data sets in the layout they are published in: from the spec alone to a checked submission."""

import csv
import json

import pytest
import yaml

from tests.cells import jobs
from tests.conftest import jpeg

LABELS = ("dog", "tree")


def has(i):
    """The labels of picture i: dog on odd ones, tree on every third."""
    return [label for label, present in zip(LABELS, (i % 2 == 1, i % 3 == 0), strict=True) if present]


def pictures(root, names):
    for i, name in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(i))


def coco(root):
    parts = {"train2017": range(1, 17), "val2017": range(17, 23)}
    for part, numbers in parts.items():
        pictures(root, {i: f"{part}/{i:012d}.jpg" for i in numbers})
        content = {
            "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in numbers],
            "categories": [{"id": 18, "name": "dog"}, {"id": 64, "name": "tree"}],
            "annotations": [
                {"image_id": i, "category_id": {"dog": 18, "tree": 64}[label]}
                for i in numbers
                for label in has(i)
            ],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    pictures(root, {i: f"test2017/{i:012d}.jpg" for i in (30, 31, 32)})
    return {
        "images": "train2017/{id}.jpg",
        "labels": {"format": "coco", "file": "instances_train2017.json"},
        "split": {
            "method": "given",
            "validation": {
                "images": "val2017/{id}.jpg",
                "labels": {"format": "coco", "file": "instances_val2017.json"},
            },
        },
        "test": {"source": str(root), "images": "test2017/{id}.jpg", "labels": "none"},
    }, [f"{i:012d}.jpg" for i in (30, 31, 32)]


def chexpert(root):
    names = {i: f"train/patient{i // 2:05d}/study1/view{i % 2 + 1}_frontal.jpg" for i in range(24)}
    pictures(root, names)
    rows = ["Path,Sex,Age,No Finding,dog,tree"]
    for i, name in names.items():
        dog, tree = ("1.0" if label in has(i) else ("-1.0", "")[i % 2] for label in LABELS)
        rows.append(f"CheXpert-v1.0-small/{name},Male,60,{'' if has(i) else '1.0'},{dog},{tree}")
    (root / "train.csv").write_text("\n".join(rows))
    return {
        "images": "train/{id}.jpg",
        "labels": {
            "format": "onehot_csv",
            "file": "train.csv",
            "ignore": ["Sex", "Age"],
            "false": [0, -1, None],
            "none": "No Finding",
        },
        "split": {
            "method": "random",
            "validation": 0.25,
            "test": 0.25,
            "group": {"pattern": r"(patient\d+)/"},
        },
    }, 6


def open_images(root):
    pictures(root, {i: f"train/{i:016x}.jpg" for i in range(1, 25)})
    rows = ["ImageID,Source,LabelName,Confidence"]
    for i in range(1, 25):
        rows += [f"{i:016x},verification,{label},{int(label in has(i))}" for label in LABELS]
    (root / "train-annotations-human-imagelabels.csv").write_text("\n".join(rows))
    return {
        "images": "train/{id}.jpg",
        "labels": {
            "format": "list_csv",
            "file": "train-annotations-human-imagelabels.csv",
            "labels_column": "LabelName",
        },
        "split": {"method": "stratified", "validation": 0.25, "test": 0.25},
    }, 6


def voc(root):
    pictures(root, {i: f"JPEGImages/2008_{i:06d}.jpg" for i in range(1, 25)})
    main = root / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for label in LABELS:
        lines = [f"2008_{i:06d} {' 1' if label in has(i) else '-1'}" for i in range(1, 25)]
        (main / f"{label}_trainval.txt").write_text("\n".join(lines))
    lists = {"train": range(1, 15), "validation": range(15, 21), "test": range(21, 25)}
    for name, numbers in lists.items():
        (main / f"{name}.txt").write_text("".join(f"2008_{i:06d}\n" for i in numbers))
    return {
        "images": "JPEGImages/{id}.jpg",
        "labels": {"format": "voc"},
        "split": {"method": "lists", **{name: str(main / f"{name}.txt") for name in lists}},
    }, [f"2008_{i:06d}.jpg" for i in range(21, 25)]


def celeba(root):
    pictures(root, {i: f"img_align_celeba/{i:06d}.jpg" for i in range(1, 25)})
    values = [" ".join(f"{1 if label in has(i) else -1:2d}" for label in LABELS) for i in range(1, 25)]
    lines = ["24", "dog tree ", *(f"{i:06d}.jpg {row}" for i, row in enumerate(values, 1))]
    (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    parts = [0 if i < 15 else 1 if i < 21 else 2 for i in range(1, 25)]
    (root / "list_eval_partition.txt").write_text(
        "".join(f"{i:06d}.jpg {p}\n" for i, p in enumerate(parts, 1))
    )
    return {
        "images": "img_align_celeba/{id}.jpg",
        "labels": {"format": "celeba"},
        "split": {
            "method": "column",
            "column": "2",
            "file": "list_eval_partition.txt",
            "delimiter": "space",
            "header": False,
        },
    }, [f"{i:06d}.jpg" for i in range(21, 25)]


def hugging_face(root):
    parts = {"train": range(1, 17), "validation": range(17, 23), "test": range(23, 26)}
    for part, numbers in parts.items():
        pictures(root, {i: f"{part}/{i - numbers[0]:04d}.jpg" for i in numbers})  # equal names in all parts
        lines = [json.dumps({"file_name": f"{i - numbers[0]:04d}.jpg", "labels": has(i)}) for i in numbers]
        (root / part / "metadata.jsonl").write_text("\n".join(lines))

    def labels(part):
        return {"format": "jsonl", "file": f"{part}/metadata.jsonl"}

    return {
        "images": "train/{id}.*",
        "labels": labels("train"),
        "split": {
            "method": "given",
            "validation": {"images": "validation/{id}.*", "labels": labels("validation")},
        },
        "test": {"source": str(root), "images": "test/{id}.*", "labels": labels("test")},
    }, ["0000.jpg", "0001.jpg", "0002.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [coco, chexpert, open_images, voc, celeba, hugging_face])
def test_a_published_layout_comes_to_a_checked_submission(tmp_path, make):
    root = tmp_path / "set"
    root.mkdir()
    section, expected = make(root)
    tree = {
        "data": {"source": str(root), "size_px": 16, **section},
        "train": {"model": {"name": "cnn2"}, "image_px": 16, "epochs": 1, "batch_size": 8},
    }
    (tmp_path / "experiments").mkdir()
    spec = tmp_path / "experiments" / "x.yaml"
    spec.write_text(yaml.safe_dump(tree))
    status, printed = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, printed
    assert "2 labels: dog " in printed
    with (tmp_path / "experiments/x/submission.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ids", *LABELS]
    if isinstance(expected, int):
        assert len(rows) == expected
    else:
        assert [row[0] for row in rows] == expected
    (index,) = [p / "index.csv" for p in tmp_path.glob("data/packed/set-16px-*") if _trained(p)]
    with index.open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert _labels(index.parent) == [has(_number(root, path)) for path in paths]


def _trained(packed):
    return any(packed.glob("split-*.json"))


def _number(root, path):
    """Which picture lies there."""
    body = (root / path).read_bytes()
    return next(i for i in range(33) if jpeg(i) == body)


def _labels(packed):
    import numpy as np

    names = json.loads((packed / "dataset.json").read_text())["labels"]
    return [[n for n, v in zip(names, row, strict=True) if v] for row in np.load(packed / "labels.npy")]
