"""What cells are called, and in which settings they differ."""

import pytest

from pipeline.spec import EvaluateSpec
from pipeline.spec.grid import expand_grid
from pipeline.spec.names import importance, recipe_name, short, slug, text, varied
from pipeline.spec.reading import read_spec


def slugs(tmp_path, grid):
    path = tmp_path / "x.yaml"
    path.write_text(f"data: {{source: a.zip}}\n{grid}\n")
    return [cell.slug for cell in expand_grid(read_spec(path, root=tmp_path))]


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        # nothing differs
        ("grid: {axes: {train.epochs: [3]}}", ["cnn3-adam"]),
        ("grid: {seeds: [0, 1]}", ["cnn3-adam-seed0", "cnn3-adam-seed1"]),
        # what is the same everywhere is left out, and the most important comes first
        (
            "grid: {axes: {train.batch_size: [64], train.optimizer: [{name: sgd, lr: 3e-4, momentum: 0.9}, "
            "{name: sgd, lr: 0.3, momentum: 0.9}], train.model.name: [cnn2, resnet18]}}",
            ["cnn2-lr0.0003", "resnet18-lr0.0003", "cnn2-lr0.3", "resnet18-lr0.3"],
        ),
        # a setting that one cell leaves at its default has that value
        ("grid: {cells: [{train.epochs: 5}, {train.batch_size: 8}]}", ["epochs5-bs64", "epochs15-bs8"]),
        # what is off and off by itself goes without saying, where something else is left to say
        ("grid: {axes: {train.augment.crop: [null, [0.35, 1]]}}", ["cnn3-adam", "crop0.35_1"]),
        (
            "train: {model: {name: resnet18}}\n"
            "grid: {cells: [{train.optimizer.lr: 0.1}, {train.model.head_hidden: 9, train.model.head_dropout: 0.5},"
            " {train.model.head: {name: csra}}]}",
            ["resnet18-linear-lr0.1", "resnet18-linear-hidden9-dropout0.5-lr0.001", "resnet18-csra-lr0.001"],
        ),
        # what is on by itself says that it is off
        (
            "grid: {axes: {train.augment.hflip: [0, 0.5], train.augment.mixup: [0, 0.2]}, seeds: [0]}",
            ["hflip0", "hflip0-mixup0.2", "hflip0.5", "hflip0.5-mixup0.2"],
        ),
        (
            "grid: {axes: {train.loss: [{name: asymmetric, gamma_negative: 0}, "
            "{name: asymmetric, gamma_negative: 2}]}}",
            ["gamma_negative0", "gamma_negative2"],
        ),
        (
            "grid: {axes: {train.augment.mixup: [0, 0.2]}, seeds: [0, 1]}",
            ["cnn3-adam-seed0", "cnn3-adam-seed1", "mixup0.2-seed0", "mixup0.2-seed1"],
        ),
    ],
)
def test_a_name_holds_what_differs(tmp_path, grid, names):
    assert slugs(tmp_path, grid) == names


def test_a_name_is_never_cut_inside_a_value():
    keys = [f"train.augment.setting_with_a_long_name_{i}" for i in range(9)]
    settings = dict.fromkeys(keys, 0.0003) | {"train.model.name": "cnn3", "train.optimizer.name": "adam"}
    name = slug(keys, settings)
    assert len(name) <= 100
    assert all(part.endswith("0.0003") for part in name.split("-"))


def test_defaults_that_come_with_another_optimizer_are_no_difference():
    adam = {
        "train.optimizer.name": "adam",
        "train.optimizer.lr": 0.001,
        "train.optimizer.eps": 1e-8,
        "train.seed": 0,
    }
    adadelta = {
        "train.optimizer.name": "adadelta",
        "train.optimizer.lr": 1.0,
        "train.optimizer.eps": 1e-6,
        "train.seed": 1,
    }
    assert varied([adam, adadelta]) == ["train.optimizer.name", "train.optimizer.lr", "train.seed"]
    assert varied([adam, adam | {"train.optimizer.eps": 1e-3}]) == ["train.optimizer.eps"]
    assert recipe_name(varied([adam, adadelta]), adadelta) == "adadelta-lr1"


def test_one_table_orders_and_shortens():
    keys = [
        "train.seed",
        "data.split.seed",
        "train.augment.hflip",
        "train.batch_size",
        "train.optimizer.lr",
        "train.model.name",
    ]
    assert sorted(keys, key=importance) == keys[::-1]
    assert [short(key) for key in ("train.optimizer.lr", "train.optimizer.name", "train.augment.hflip")] == [
        "lr", "optimizer", "hflip",
    ]  # fmt: skip
    assert [text(value) for value in (3e-4, 1.0, None, True, (0.35, 1.0))] == [
        "0.0003",
        "1",
        "none",
        "true",
        "[0.35, 1]",
    ]


@pytest.mark.parametrize(
    ("settings", "tuned"),
    [
        ({"threshold": "per_label", "select_by": "f1_micro"}, "f1_micro"),
        ({"threshold": "per_label", "select_by": "map_macro"}, "f1_macro"),
        ({"threshold": "per_label", "select_by": "f1_samples_empty0"}, "f1_samples_empty0"),
        ({"threshold": "expected_f1", "select_by": "f1_micro"}, "f1_samples_empty1"),
        ({"threshold": "expected_f1", "select_by": "f1_samples_empty0"}, "f1_samples_empty0"),
        ({"threshold": "per_label", "select_by": "f1_micro", "tune_for": "f1_macro"}, "f1_macro"),
        (
            {
                "threshold": "per_label",
                "select_by": "f1_samples_empty1",
                "tune_on": "expected",
                "calibrate": "platt",
            },
            "f1_macro",
        ),
    ],
)
def test_the_rule_is_tuned_for_what_ranks_where_it_can_be(settings, tuned):
    spec = EvaluateSpec(**settings)
    assert spec.tuned_for == tuned
    matches = tuned == spec.select_by or not spec.select_by.startswith("f1_")
    assert bool(spec.mismatch) != matches
