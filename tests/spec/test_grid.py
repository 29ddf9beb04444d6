"""Grids: axes x cells x seeds, without what is excluded; identities that keep finished cells finished."""

import json
from pathlib import Path

import pytest
from pydantic import Field

from pipeline.errors import SpecError
from pipeline.spec import Adam, AugmentSpec, Section, TrainSpec
from pipeline.spec.grid import expand_grid
from pipeline.spec.identity import canonical, cell_identity, digest, pixel_versions
from pipeline.spec.reading import read_spec

PRETRAINED = {"name": "resnet18", "weights": "IMAGENET1K_V1", "trainable": "head"}
BASE = "data: {source: a.zip}\ntrain: {epochs: 2}\n"


@pytest.fixture
def cells(tmp_path):
    def expand(text, *overrides):
        path = tmp_path / "x.yaml"
        path.write_text(BASE + text)
        return expand_grid(read_spec(path, overrides, root=tmp_path))

    return expand


def refused(cells, text, *overrides):
    with pytest.raises(SpecError) as caught:
        cells(text, *overrides)
    return str(caught.value)


def test_without_a_grid_there_is_one_cell(cells):
    (cell,) = cells("")
    assert cell.slug == "cnn3-adam"
    assert cell.spec.train.epochs == 2


def test_axes_cells_and_seeds_multiply(cells):
    text = """
grid:
  axes:
    train.optimizer: [{name: adam, lr: 1e-4}, {name: sgd, lr: 0.1}]
    train.batch_size: [16, 32]
  cells:
    - {train.model.name: cnn2}
    - {train.model: {name: cnn3}, train.loss: {name: soft_f1}}
  seeds: [0, 1, 2]
"""
    found = cells(text)
    assert len(found) == 2 * 2 * 2 * 3
    assert len({cell.slug for cell in found}) == len(found)
    assert found[0].slug == "cnn2-adam-lr0.0001-bce-bs16-seed0"
    last = found[-1].spec.train
    assert (last.optimizer.name, last.batch_size, last.model.name, last.loss.name, last.seed) == (
        "sgd", 32, "cnn3", "soft_f1", 2,
    )  # fmt: skip


def test_exclude_matches_nested_values(cells):
    text = """
grid:
  axes:
    train.optimizer: [{name: adam, lr: 1e-4}, {name: sgd, lr: 0.1}]
    train.model.name: [cnn2, cnn3]
  exclude:
    - {train.optimizer.name: adam, train.model: {name: cnn2}}
"""
    assert [cell.slug for cell in cells(text)] == ["cnn3-adam-lr0.0001", "cnn2-sgd-lr0.1", "cnn3-sgd-lr0.1"]


def test_a_combination_that_cannot_be_is_left_out_where_it_is_excluded(cells):
    text = """
grid:
  axes:
    train.model: [{name: resnet18}]
    train.model.head: [{name: linear}, {name: csra}]
    train.model.head_hidden: [null, 64]
"""
    refused(cells, text)
    rule = "  exclude: [{train.model.head: {name: csra}, train.model.head_hidden: 64}]\n"
    found = [(c.spec.train.model.head.name, c.spec.train.model.head_hidden) for c in cells(text + rule)]
    assert found == [("linear", None), ("linear", 64), ("csra", None)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "grid: {axes: {train.optimzer: [{name: adam}]}}",
            "x.yaml:3: train.optimzer: unknown key; did you mean",
        ),
        (
            "grid:\n  cells:\n  - train.batch_size: 8\n  - train.batch_size: x",
            "x.yaml:6: train.batch_size: expected a",
        ),
        ("grid: {axes: {evaluate.threshold: [0.1]}}", "a grid varies data.* or train.*"),
        ("grid: {axes: {train.seed: [1]}, seeds: [1, 2]}", "both seeds and train.seed vary the seed"),
        ("grid: {axes: {train.epochs: []}}", "an axis needs at least one value"),
        ("grid: {seeds: [0, 1], exclude: [{train.seed: 7}]}", "grid.exclude[0]: excludes no cell"),
        ("grid: {seeds: [0], exclude: [{train.seed: 0}]}", "every cell is excluded"),
        ("grid: {axes: {train.optimizer: [{name: adam}, {name: adam, lr: 0.001}]}}", "is the same run as"),
        ("grid: {axes: {train.epochs: 3}}", "grid.axes.train.epochs: expected a list"),
    ],
)
def test_a_wrong_grid_says_what_to_do(cells, text, said):
    assert said in refused(cells, text)


def test_an_override_that_no_cell_heeds_is_refused_and_one_that_some_heed_is_not(cells):
    axis = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd}]}}"
    assert "has no effect" in refused(cells, axis, "train.optimizer={name: adamw}")
    listed = "grid: {cells: [{train.model: {name: cnn2}}, {train.batch_size: 8}]}"
    found = cells(listed, "train.model.name=resnet18")
    assert [cell.spec.train.model.name for cell in found] == ["cnn2", "resnet18"]


def identity(train, data="d", weights=None):
    return cell_identity(train, data, weights)


def test_identity_changes_with_what_changes_the_result_and_with_nothing_else(cells):
    (one,) = cells("")
    same = [
        cells("run: {device: cpu, parallel: 3, threads: 2}")[0],
        cells("evaluate: {threshold: per_label}")[0],
        cells("", "train.optimizer={name: adam, lr: 1e-3}")[0],  # the default, written out
    ]
    assert {identity(cell.spec.train) for cell in same} == {identity(one.spec.train)}
    other = [
        cells("", f"train.{change}")[0]
        for change in ("seed=1", "epochs=3", "optimizer={name: adam, lr: 1e-4}")
    ]
    found = {identity(one.spec.train), *(identity(cell.spec.train) for cell in other)}
    found |= {identity(one.spec.train, data="e"), identity(one.spec.train, weights="w")}
    assert len(found) == 6


def test_identity_depends_on_the_content_of_weights_not_on_their_path(cells):
    a, b = (
        cells("", f"train.model={{name: cnn3, weights: {path}}}")[0].spec.train
        for path in ("a.pth", "b/c.pth")
    )
    assert identity(a, weights="w") == identity(b, weights="w") != identity(a, weights="v")


def test_a_field_added_later_keeps_the_identity_of_those_who_leave_it_at_its_default():
    class Before(Section):
        lr: float = 0.1

    class After(Section):
        lr: float = 0.1
        ema: bool = False

    class Changed(Section):
        lr: float = Field(default=0.2, json_schema_extra={"introduced": 0.1})

    assert canonical(Before(lr=0.5)) == canonical(After(lr=0.5))
    assert canonical(After(ema=True)) == {"ema": True}
    assert canonical(Changed(lr=0.1)) == canonical(Before())
    assert canonical(Changed()) == {"lr": 0.2}


def test_identities_of_today_stay_what_they_are(cells):
    """Finished cells of users carry these; a change here means that all of them are trained again."""
    golden = json.loads((Path(__file__).parent / "golden" / "identities.json").read_text())
    found = {
        "defaults": identity(TrainSpec()),
        "adam 1e-4": identity(TrainSpec(optimizer=Adam(lr=1e-4))),
        "cell": identity(
            cells("", "train.augment.crop=[0.35, 1]", "train.schedule={name: cosine}")[0].spec.train
        ),
        "flips and colour": identity(
            TrainSpec(augment=AugmentSpec(vflip=0.5, trivial_augment=True, mixup=0.2), image_px=64)
        ),
    }
    assert found == golden


def test_groups_of_parameters_are_part_of_the_identity_with_their_order_and_name_a_cell(cells):
    layer4, norms = "{parameters: layer4.*, lr_factor: 2}", "{parameters: '*.bn?.*', weight_decay: 0}"
    values = ["[]", f"[{layer4}, {norms}]", f"[{norms}, {layer4}]", f"[{norms}]"]
    found = cells(f"grid: {{axes: {{train.optimizer.groups: [{', '.join(values)}]}}}}")
    assert len({identity(cell.spec.train) for cell in found}) == 4
    assert identity(found[0].spec.train) == identity(cells("")[0].spec.train)
    assert found[1].slug == "groupsparameters_layer4._lr_factor_2_parameters_.bn_._weight_decay_0"
    assert canonical(found[3].spec.train.optimizer) == {
        "name": "adam",
        "groups": [{"parameters": "*.bn?.*", "weight_decay": 0.0}],
    }


def test_cells_whose_pixels_changed_since_have_another_identity_and_no_others():
    def changed(**settings):
        train = TrainSpec.model_validate({"model": PRETRAINED} | settings)
        plain = digest({"data": "d", "train": canonical(train)})
        return identity(train) != plain

    large = PRETRAINED | {"name": "efficientnet_v2_l"}
    assert not changed()
    assert not changed(augment={"hflip": 0.5, "vflip": 0.5, "brightness": 0.2, "cutmix": 1.0})
    assert not changed(augment={"trivial_augment": True})
    assert not changed(cached_views=2)
    assert not changed(model={"name": "efficientnet_v2_l"})  # random weights take what they took
    assert changed(augment={"crop": (1.0, 1.0)})
    assert changed(augment={"rotate_deg": 1.0})
    assert changed(augment={"trivial_augment": True}, cached_views=2)
    assert changed(model=large)
    cropped = TrainSpec.model_validate({"model": large, "augment": {"crop": (0.5, 1.0)}})
    assert pixel_versions(cropped).keys() == {"augment_version", "normalisation", "interpolation"}
    assert pixel_versions(cropped, is_augmented=False).keys() == {"normalisation", "interpolation"}
    swin = TrainSpec.model_validate({"model": PRETRAINED | {"name": "swin_t"}})
    assert pixel_versions(swin) == {"interpolation": "bicubic"}
