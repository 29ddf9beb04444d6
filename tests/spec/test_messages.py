"""What a newcomer writes, and the whole answer: which key, where, and what was meant. One table by area."""

import re
import subprocess
import sys

import pytest

from pipeline.spec.fields import TAGS
from pipeline.spec.grid import expand_grid
from pipeline.spec.identity import cell_identity
from pipeline.spec.other_words import _WORDS, keys_for
from pipeline.spec.reading import is_key, read_spec
from tests.cells import jobs
from tests.conftest import ROOT, write_zip

D = "data: {source: photos.zip}\n"  # one line

# what stands in experiments/x.yaml -> the mistakes that are told
SPECS = {
    "data: {source: photos.zip, split: {method: random, val: 0.2}}": [
        "1: data.split.val: unknown key; did you mean `validation`?"
    ],
    "data: {source: photos.zip, split: {val: 0.2}}": [
        (
            "1: data.split: needs the key 'method' (got {'val': 0.2}); known: ordered, random, "
            "stratified, lists, ranges, column, given; val: unknown key; did you mean `validation`?"
        )
    ],
    D + "train: {augment: {rotation: 10}}": [
        "2: train.augment.rotation: unknown key; did you mean `rotate_deg`?"
    ],
    D + "train: {lr: 0.1}": ["2: train.lr: unknown key; did you mean `train.optimizer.lr`?"],
    D + "lr: 0.1": ["2: lr: unknown key; did you mean `train.optimizer.lr`?"],
    D + "epochs: 3": ["2: epochs: unknown key; did you mean `train.epochs`?"],
    D + "train: {bs: 8, arch: resnet18, val: 0.2, workers: 2, gpus: 1, seeds: 3, aug: {}}": [
        "2: train.bs: unknown key; did you mean `batch_size`?",
        "2: train.arch: unknown key; did you mean `train.model.name`?",
        "2: train.val: unknown key; did you mean `data.split.validation`?",
        "2: train.workers: unknown key; did you mean `run.threads`?",
        "2: train.gpus: unknown key; did you mean `run.device`?",
        "2: train.seeds: unknown key; did you mean `grid.seeds`?",
        "2: train.aug: unknown key; did you mean `augment`?",
    ],
    D + "train: {augment: {hflip: true}}": [
        (
            "2: train.augment.hflip: expected a number from 0 to 1, e.g. 0.5, got True (The "
            "probability of mirroring left and right)"
        )
    ],
    D + "train: {augment: {mixup: false}}": [
        (
            "2: train.augment.mixup: expected a number at least 0; 0 is off, got False (Blends "
            "pictures and labels of pairs; alpha of its Beta distribution (Zhang et al. 2018))"
        )
    ],
    D + "train: {model: {name: resnet18, weights: imagenet}}": [
        (
            "2: train.model.weights: name published weights, IMAGENET1K_V1 or another of "
            "torchvision's, or the path of a file, or write none (got 'imagenet')"
        )
    ],
    D + "train: {model: {name: resnet18, pretrained: true}}": [
        "2: train.model.pretrained: unknown key; did you mean `weights`?"
    ],
    D + "train: {model: resnet18}": [
        "2: train.model: expected a mapping of keys, got 'resnet18'; write {name: resnet18}"
    ],
    D + "train: {optimizer: sgd}": [
        "2: train.optimizer: expected a mapping of keys, got 'sgd'; write {name: sgd}"
    ],
    D + "train: {optimizer: {lr: 0.1}}": [
        (
            "2: train.optimizer: needs the key 'name' (got {'lr': 0.1}); known: sgd, adam, adamw, "
            "rmsprop, adadelta"
        )
    ],
    D + "train: {optimizer: {name: adam, momentum: 0.9}}": [
        (
            "2: train.optimizer.momentum: unknown key: it is one of `sgd` and `rmsprop`; `adam` has "
            "backbone_lr_factor, betas, decay_bias_and_norm, eps, groups, layer_decay, lr, name, weight_decay"
        )
    ],
    D + "train: {optimizer: {name:sgd}}": [
        (
            "2: train.optimizer: needs the key 'name' (got {'name:sgd': None}); known: sgd, adam, "
            "adamw, rmsprop, adadelta; name:sgd: a space is missing after the colon; write `name: "
            "sgd`"
        )
    ],
    D + "train: {schedule: {warmup: 1}}": [
        (
            "2: train.schedule: needs the key 'name' (got {'warmup': 1}); known: constant, cosine, "
            "cosine_restarts, step, one_cycle, plateau; warmup: unknown key; did you mean "
            "`warmup_epochs`?"
        )
    ],
    D + "train.epochs: 3": [
        (
            "2: train.epochs: unknown key; in a file nested: `train: {epochs: ...}`; dots are for --set and grid"
        )
    ],
    "data:\n\tsource: photos.zip\n": ["2: a tab in the indentation; use spaces"],
    "data:\n  source: photos.zip\n \timages: a\n": ["3: a tab in the indentation; use spaces"],
    "data:\n  source:photos.zip\n": [
        "1: data: a space is missing after the colon; write `source: photos.zip`"
    ],
    "data:\n  source:photos.zip\n  size_px: 32\n": [
        "2: a space is missing after the colon; write `source: photos.zip`"
    ],
    D + "train:\n  epochs:3\n": [
        (
            "2: train: expected a mapping of keys, got 'epochs:3'; a space is missing after the "
            "colon; write `epochs: 3`"
        )
    ],
    D + "train:\n  epochs:3\n  seed: 1\n": ["3: a space is missing after the colon; write `epochs: 3`"],
    D + "grid: {lr: [0.1, 0.2]}": [
        "2: grid.lr: unknown key; did you mean `axes: {train.optimizer.lr: [...]}`?"
    ],
    D + "grid: {axes: {lr: [0.1]}}": [
        (
            "2: grid.axes.lr: a grid varies data.* or train.*, e.g. train.optimizer.lr; got `lr`; did "
            "you mean `train.optimizer.lr`?"
        )
    ],
    D + "grid: {axes: {train.lr: [0.1]}}": ["2: train.lr: unknown key; did you mean `train.optimizer.lr`?"],
    D + "grid: {axes: {train.optimizer.momentum: [0.9]}}": [
        (
            "2: train.optimizer.momentum: unknown key: it is one of `sgd` and `rmsprop`; `adam` has "
            "backbone_lr_factor, betas, decay_bias_and_norm, eps, groups, layer_decay, lr, name, weight_decay"
        )
    ],
    D + "train: {optimizer: {name: sgd, groups: [{parameters: fc.*}]}}": [
        "2: train.optimizer.groups[0]: changes nothing; give lr_factor or weight_decay"
    ],
    D + "train: {optimizer: {name: sgd, layer_decay: 1.2, llrd: 0.8}}": [
        "2: train.optimizer.layer_decay: expected less than or equal to 1, got 1.2",
        "2: train.optimizer.llrd: unknown key; did you mean `layer_decay`?",
    ],
    D + "train: {model: {name: cnn3, head: {name: csra}}}": [
        "2: train.model: cnn3 flattens its maps, and head: csra needs them; leave head out, or take another network"
    ],
    D + "train: {model: {name: resnet18, head: {name: csra, heads: 3}, head_hidden: 8}}": [
        "2: train.model.head.heads: expected 1, 2, 4, 6 or 8, got 3"
    ],
    D + "train: {model: {name: resnet18, head: {name: csra}, head_hidden: 8}}": [
        "2: train.model: head_hidden is of the linear head; leave it out, or leave head: csra out"
    ],
    D + "train: {model: {name: resnet18, head: {heads: 4}}}": [
        "2: train.model.head: needs the key 'name' (got {'heads': 4}); known: linear, csra"
    ],
    D + "run: {resources: [{memory: 8, nodes: 2}]}": [
        "2: run.resources[0].memory: unknown key; did you mean `mem_gb`?",
        (
            "2: run.resources[0].nodes: unknown key; known: cells_per_job, concurrent_cells, "
            "constraint, cpus, gpus_per_node, gres, mem_gb, partition, qos, sbatch, stage, time_min, "
            "when"
        ),
    ],
    D + "run: {num_workers: 2}": ["2: run.num_workers: unknown key; did you mean `threads`?"],
    D + "run: {resources: [{when: {train.lr: 0.1}, cpus: 2}]}": [
        "2: run.resources[0].when.train.lr: unknown key; did you mean `train.optimizer.lr`?"
    ],
    D + "grid: {axes: {train.seed: [0, 1]}, exclude: [{train.sed: 1}]}": [
        (
            "2: grid.exclude[0].train.sed: unknown key; did you mean `seed`? known: augment, "
            "batch_size, cached_views, clip_grad_norm, ema_epochs, epochs, eval_image_px, "
            "freeze_backbone_epochs, image_px, loss, model, monitor, optimizer, patience_epochs, "
            "precision, sampling, schedule, seed, tta_hflip"
        )
    ],
    D + "evaluate: {thresh: 0.4}": ["2: evaluate.thresh: unknown key; did you mean `threshold`?"],
    "data: {source: photos.zip, val_split: 0.2, size: 32, csv: l.csv}": [
        "1: data.val_split: unknown key; did you mean `data.split.validation`?",
        "1: data.size: unknown key; did you mean `size_px`?",
        "1: data.csv: unknown key; did you mean `data.labels.file`?",
    ],
}
# settings given by SET, as the shell divides them -> the mistakes that are told
SETS = {
    ("a=1,b=2",): ["--set a=1,b=2: separate settings by spaces: a=1 b=2"],
    ("train.epochs=1,train.seed=2",): [
        ("--set train.epochs=1,train.seed=2: separate settings by spaces: train.epochs=1 train.seed=2")
    ],
    ("train.epochs=1,", "train.seed=2"): [
        "--set train.epochs=1,: separate settings by spaces: train.epochs=1"
    ],
    ("train.augment.crop=[0.5,", "1]"): [
        (
            "--set train.augment.crop=[0.5,: ends at a space inside its value; write none there, or "
            "quote the whole: 'train.augment.crop=[a, b]'"
        )
    ],
    ("train.augment.crop=[0.5,", "1]", "train.epochs=two"): [
        (
            "--set train.augment.crop=[0.5,: ends at a space inside its value; write none there, or "
            "quote the whole: 'train.augment.crop=[a, b]'"
        ),
        "--set train.epochs=two: train.epochs: expected a whole number, got 'two'",
    ],
    ("train.epochs", "=", "3"): [
        "--set train.epochs: write key.path=value, without spaces, e.g. train.epochs=3",
        "--set =: write key.path=value, without spaces, e.g. train.epochs=3",
    ],
    ("train.lr=0.1",): ["--set train.lr=0.1: train.lr: unknown key; did you mean `train.optimizer.lr`?"],
    ("lr=0.1",): ["--set lr=0.1: lr: unknown key; did you mean `train.optimizer.lr`?"],
    ("data.split.seed=1",): [
        (
            "--set data.split.seed=1: data.split.seed: unknown key: it is one of `random` and "
            "`stratified`; `ordered` has group, method, test, validation"
        )
    ],
    ("train.augment.rotation=3",): [
        ("--set train.augment.rotation=3: train.augment.rotation: unknown key; did you mean `rotate_deg`?")
    ],
    ("cluster.train.partition=x",): [
        (
            "--set cluster.train.partition=x: has no effect: cluster local has no Slurm; what this "
            "machine does is in run.parallel, run.threads and run.device; or name a cluster by "
            "--cluster NAME"
        )
    ],
    ("cluster.partition=x",): [
        (
            "--set cluster.partition=x: partition: unknown key; did you mean "
            "`cluster.train.partition`? (got 'x')"
        )
    ],
}
# what stands in experiments/x.yaml -> the one sentence about its data or weights
DATA = {
    "data:\n  source: photo.zip": (
        "error: experiments/x.yaml:2: data.source: HERE/photo.zip: there is no such folder or "
        "archive; the nearest names there: photos.zip; correct the path, or fetch it"
    ),
    "data:\n  source: nowhere/photos.zip": (
        "error: experiments/x.yaml:2: data.source: HERE/nowhere/photos.zip: there is no such "
        "folder or archive; the folder HERE/nowhere is not there either; correct the path, or "
        "fetch it"
    ),
    "data: {source: photos.zip, images: 'images/img{id}.jpg'}": (
        "error: HERE/photos.zip: no file is named 'images/img{id}.jpg'; correct data.images (the "
        "images are called images/im1.jpg, images/im2.jpg, images/im3.jpg, ...: 'images/{id}.jpg' "
        "matches 12 of 12)"
    ),
    "data: {source: photos.zip, images: '{id}.png'}": (
        "error: HERE/photos.zip: no file is named '{id}.png'; correct data.images (the images are "
        "called images/im1.jpg, images/im2.jpg, images/im3.jpg, ...: 'images/{id}.jpg' matches 12 "
        "of 12)"
    ),
    "data:\n  source: photos.zip\n  image_list: list.txt": (
        "error: experiments/x.yaml:3: data.image_list: HERE/list.txt: cannot be read: No such "
        "file or directory; its folder holds experiments, large.zip, locked.zip, others.zip, "
        "photos.tar.gz ...; it is a text file of ids, one a line"
    ),
    "data: {source: photos.zip, test: {source: others.zip}}": (
        "experiments/x.yaml: 1 cell\nerror: HERE/others.zip: no file is named 'im{id}.jpg'; "
        "correct data.test.images (the images are called pics/photo_1.jpg, pics/photo_2.jpg, "
        "pics/photo_10.jpg, ...: 'pics/{id}.jpg' matches 3 of 3)"
    ),
    "data: {source: photos.zip, test: {source: photos-tst.zip}}": (
        "experiments/x.yaml: 1 cell\nerror: experiments/x.yaml:1: data.test.source: "
        "HERE/photos-tst.zip: there is no such folder or archive; the nearest names there: "
        "photos.zip; correct the path, or fetch it"
    ),
    "data: {source: photos.zip, labels: {format: onehot_csv, file: /abs/l.csv}}": (
        "error: HERE/photos.zip: '/abs/l.csv' is looked for inside it; write the file's folder as "
        "data.labels.source, and its name here"
    ),
    "data: {source: photos.zip, labels: {format: onehot_csv, file: ../l.csv}}": (
        "error: HERE/photos.zip: '../l.csv' is looked for inside it; write the file's folder as "
        "data.labels.source, and its name here"
    ),
    "data: {source: photos.zip, labels: {format: id_lists, files: 'labels/{label}.txt'}}": (
        "error: HERE/photos.zip: no label file is named 'labels/{label}.txt'; it holds "
        "annotations/dog.txt, annotations/tree.txt; correct data.labels, or name another folder "
        "or archive as data.labels.source"
    ),
    "data: {source: photos.zip, labels: {format: coco, file: a.json, source: lables.zip}}": (
        "error: experiments/x.yaml:1: data.labels.source: HERE/lables.zip: there is no such "
        "folder or archive; the nearest names there: large.zip; correct the path, or fetch it"
    ),
    "data: {source: locked.zip}": (
        "error: HERE/locked.zip: im1.jpg is encrypted; unpack it, and pack it without a password"
    ),
    "data: {source: large.zip}": (
        "error: HERE/large.zip: im1.jpg is compressed by Deflate64 (of Windows, for large files), "
        "which Python cannot read; unpack it, and pack it with `zip -0` (images gain nothing from "
        "compression)"
    ),
    "data: {source: photos.tar.gz}": (
        "error: HERE/photos.tar.gz: not a folder, .zip or .tar; unpack it to a .tar (a compressed "
        "tar cannot be read in place)"
    ),
    D + "train:\n  model: {name: resnet18, weights: w.pth}": (
        "error: experiments/x.yaml:3: train.model.weights: HERE/w.pth cannot be read (No such "
        "file or directory); its folder holds data, experiments, large.zip, locked.zip, "
        "others.zip ...; correct the path, or name published weights, e.g. IMAGENET1K_V1, or "
        "write none"
    ),
    D + "grid:\n  axes:\n    data.source: [photos.zip, fotos.zip]": (
        "error: experiments/x.yaml:4: data.source: HERE/fotos.zip: there is no such folder or "
        "archive; the nearest names there: photos.zip, others.zip; correct the path, or fetch it"
    ),
}
# a name given as SPEC -> the mistake that is told
NAMES = {
    "photos.zip": "photos.zip: is an archive, not a spec; `labelgrid init photos.zip` writes one for its images",
    "pictures": "pictures: is a folder, not a spec; `labelgrid init pictures` writes one for its images",
    "experiments": "experiments: is a folder, not a spec; did you mean experiments/x.yaml?",
    "experiments/x": (
        "experiments/x: is the folder of an experiment, not its spec; did you mean experiments/x.yaml?"
    ),
    "x.yaml": (
        "x.yaml: cannot be read: No such file or directory in HERE, where a relative path starts; "
        "did you mean experiments/x.yaml?"
    ),
    "x": (
        "x: cannot be read: No such file or directory in HERE, where a relative path starts; did "
        "you mean experiments/x.yaml?"
    ),
    "experiments/y.yaml": (
        "experiments/y.yaml: cannot be read: No such file or directory in HERE, where a relative "
        "path starts; beside it there are x.yaml"
    ),
    "experiments/xx.yaml": (
        "experiments/xx.yaml: cannot be read: No such file or directory in HERE, where a relative "
        "path starts; did you mean experiments/x.yaml?"
    ),
    "experiments/x.yml": (
        "experiments/x.yml: cannot be read: No such file or directory in HERE, where a relative "
        "path starts; did you mean experiments/x.yaml?"
    ),
    "nowhere/q.yaml": (
        "nowhere/q.yaml: cannot be read: No such file or directory in HERE, where a relative path "
        "starts; beside it there are experiments/x.yaml"
    ),
}


@pytest.fixture
def asked(photos, tmp_path):
    """asked(text, *arguments): (exit status, answer) of plan for a spec of this text in a project of one archive."""
    (tmp_path / "experiments").mkdir()
    for name, offset, value in (("locked", 8, 1), ("large", 10, 9)):  # encrypted, Deflate64
        body = bytearray(write_zip(tmp_path / f"{name}.zip", {"im1.jpg": b"x" * 100}).read_bytes())
        body[body.index(b"PK\x01\x02") + offset] = value
        (tmp_path / f"{name}.zip").write_bytes(body)
    write_zip(tmp_path / "others.zip", {f"pics/photo_{i}.jpg": b"x" for i in (1, 2, 10)})
    (tmp_path / "photos.tar.gz").write_bytes(b"x")

    def ask(text, *arguments, spec="experiments/x.yaml"):
        (tmp_path / "experiments/x.yaml").write_text(text)
        status, printed = jobs("plan", spec, *arguments, cwd=tmp_path)
        return status, printed.replace(str(tmp_path), "HERE")

    return ask


def mistakes(printed):
    """The mistakes of an answer, without the file they are in."""
    first, *lines = printed.splitlines()
    assert re.fullmatch(rf"error: \S+: {len(lines)} mistakes?", first), printed
    return [line.removeprefix("  ").removeprefix("experiments/x.yaml:") for line in lines]


@pytest.mark.parametrize("text", SPECS)
def test_a_key_or_value_is_explained_by_what_was_meant(asked, text):
    status, printed = asked(text)
    assert (status, mistakes(printed)) == (2, SPECS[text])


@pytest.mark.parametrize("settings", SETS)
def test_a_setting_is_explained_likewise(asked, settings):
    status, printed = asked(D, "--set", *settings)
    assert (status, mistakes(printed)) == (2, SETS[settings])


@pytest.mark.parametrize("text", DATA)
def test_what_is_not_there_is_named_by_key_and_line_with_what_is_near(asked, text):
    assert asked(text) == (2, f"{DATA[text]}\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_that_is_not_there_is_looked_for_in_experiments(asked, tmp_path, name):
    if name in ("pictures", "experiments/x"):
        (tmp_path / name).mkdir()
    status, printed = asked(D, spec=name)
    assert (status, mistakes(printed)) == (2, [NAMES[name]])


# (what a spec has in place of `{}`, settings) -> a dotted value of each cell
KEPT = [
    (
        "grid: {axes: {train.optimizer.lr: [0.1, 0.2]}}",
        (),
        "train.optimizer",
        [("adam", 0.1), ("adam", 0.2)],
        "lr",
    ),
    (
        "grid: {cells: [{train.loss.label_smoothing: 0.1}]}",
        (),
        "train.loss",
        [("bce", 0.1)],
        "label_smoothing",
    ),
    ("", ["train.schedule.warmup_epochs=2"], "train.schedule", [("constant", 2)], "warmup_epochs"),
    ("", ["data.split.validation=0.3"], "data.split", [("ordered", 0.3)], "validation"),
    ("", ["data.labels.empty=drop"], "data.labels", [("id_lists", "drop")], "empty"),
    (
        "grid: {axes: {train.optimizer.name: [sgd]}}",
        ["train.optimizer.lr=0.1"],
        "train.optimizer",
        [("sgd", 0.1)],
        "lr",
    ),
    ("train: {optimizer: {name: sgd}}", ["train.optimizer.lr=0.1"], "train.optimizer", [("sgd", 0.1)], "lr"),
]


@pytest.mark.parametrize(("text", "settings", "section", "cells", "key"), KEPT)
def test_a_key_of_a_default_section_needs_no_name(tmp_path, text, settings, section, cells, key):
    path = tmp_path / "x.yaml"
    path.write_text(D + text)
    found = [cell.spec for cell in expand_grid(read_spec(path, settings))]
    whole, part = section.split(".")
    sections = [getattr(getattr(spec, whole), part) for spec in found]
    tags = [next(getattr(one, tag) for tag in TAGS if hasattr(one, tag)) for one in sections]
    assert list(zip(tags, (getattr(one, key) for one in sections), strict=True)) == cells


def test_a_section_that_names_itself_by_a_word_is_not_replaced_by_the_default(asked):
    """`optimizer: sgd` and SET train.optimizer.lr must not train with adam."""
    status, printed = asked(D + "train: {optimizer: sgd}", "--set", "train.optimizer.lr=0.1")
    assert (status, "needs the key 'name'" in printed) == (2, True)


def test_the_default_section_named_or_not_is_the_same_cell(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(D)
    (short,) = expand_grid(read_spec(path, ["train.optimizer.lr=0.01"]))
    (whole,) = expand_grid(read_spec(path, ["train.optimizer={name: adam, lr: 0.01}"]))
    assert cell_identity(short.spec.train, "d", None) == cell_identity(whole.spec.train, "d", None)


def test_every_word_of_other_tools_means_a_key_that_is_there_and_is_none_itself():
    for key, words in _WORDS.items():
        assert is_key(key.replace("[]", "")), key
        for word in words.split():
            assert keys_for(word.upper().replace("_", "-"))[0] in _WORDS
            assert not is_key(f"{key.rpartition('.')[0]}.{word}".lstrip(".")), (key, word)


# what is typed after make -> the error, before make's own words
MAKE = {
    ("setup", "PYTHON=python3.99"): (
        "error: python3.99 is not found; name a Python that is here: make setup PYTHON=python3.12"
    ),
    ("train",): "error: no verb `train`; `grid` trains every missing cell",
    ("resume", "SPEC=x.yaml"): (
        "error: no verb `resume`; `grid` resumes what was interrupted and does not repeat what is complete"
    ),
    ("-C", "HERE", "plan", "SPEC=demo.yaml"): (
        "error: demo.yaml: 1 mistake\n  demo.yaml: cannot be read: No such file or directory in HERE, where a "
        "relative path starts; did you mean experiments/demo.yaml?"
    ),
}


@pytest.mark.parametrize("words", MAKE)
def test_make_says_it_too(tmp_path, words):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    if "PYTHON=python3.99" not in words:
        (tmp_path / ".ready").touch()
    words = [word.replace("HERE", str(ROOT)) for word in words]
    cwd = tmp_path if "-C" in words else ROOT
    done = subprocess.run(
        ["make", f"VENV={tmp_path}", *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    answer = done.stderr + done.stdout
    told = answer[answer.index("error: ") :].replace(str(ROOT), "HERE").splitlines()
    expected = MAKE[tuple(word.replace(str(ROOT), "HERE") for word in words)].splitlines()
    assert (done.returncode, told[: len(expected)]) == (2, expected)
