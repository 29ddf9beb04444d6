"""Keys of version 0.1 are answered with their new name, wherever they are written."""

import pytest

from jobs.clusters.profile import Profile, config_dir, load_profile
from pipeline.errors import SpecError
from pipeline.spec import Spec
from pipeline.spec.grid import expand_grid
from pipeline.spec.reading import read_spec
from pipeline.spec.renamed import RENAMED

DATA = "data: {source: a.zip}\n"
# what else a section must say for the renamed key to have a place in it
TAGS = {
    "backbone_lr_factor": {"name": "sgd"},
    "final_fraction": {"name": "cosine"},
    "pct_start": {"name": "one_cycle"},
    "start_fraction": {"name": "one_cycle"},
    "label_smoothing": {"name": "bce"},
    "soft_f1_fraction": {"name": "bce_soft_f1"},
}
IN_SPEC = {old: new for old, new in RENAMED.items() if not old.startswith("cluster.")}
SWEPT = {old: new for old, new in IN_SPEC.items() if old.startswith(("data.", "train."))}


@pytest.fixture
def refused(tmp_path):
    def read(text, *overrides):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        with pytest.raises(SpecError) as caught:
            expand_grid(read_spec(path, overrides, root=tmp_path))
        return str(caught.value)

    return read


def parts(old):
    *path, name = old.split(".")
    return path, name, TAGS.get(RENAMED[old], {})


def flow(value):
    return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"


@pytest.mark.parametrize("old", IN_SPEC)
def test_in_the_file_with_its_line(refused, old):
    path, name, tags = parts(old)
    section = flow(tags | {name: "0.5"})
    if path[-1] == "resources":
        section = f"[{section}]"
    if path == ["data"]:
        text = f"data:\n  source: a.zip\n  {name}: 0.5\n"
        line = 3
    else:
        text, line = DATA, 2
        for depth, part in enumerate(path[:-1]):
            text, line = f"{text}{'  ' * depth}{part}:\n", line + 1
        text += f"{'  ' * (len(path) - 1)}{path[-1]}: {section}\n"
    said = refused(text)
    assert f"x.yaml:{line}: " in said
    assert f"`{name}` is now called `{RENAMED[old]}`" in said
    assert "1 mistake" in said


@pytest.mark.parametrize("old", IN_SPEC)
def test_in_an_override(refused, old):
    path, name, tags = parts(old)
    if path[-1] == "resources":
        said = refused(DATA, f"run.resources=[{{{name}: 2}}]")
    else:
        tag = [f"{'.'.join(path)}.{key}={value}" for key, value in tags.items()]
        said = refused(DATA, *tag, f"{old}=0.5")
        assert f"--set {old}=0.5: {old}: " in said
    assert f"`{name}` is now called `{RENAMED[old]}`" in said


@pytest.mark.parametrize("old", SWEPT)
@pytest.mark.parametrize(
    "where", ["axes: {%s: [0.1, 0.2]}", "cells: [{%s: 0.1}]", "seeds: [0, 1], exclude: [{%s: 0.1}]"]
)
def test_in_a_grid(refused, old, where):
    said = refused(f"{DATA}grid: {{\n  {where % old}}}\n")
    name = old.rsplit(".", 1)[1]
    assert f"`{name}` is now called `{RENAMED[old]}`" in said
    assert "x.yaml:3: " in said


@pytest.mark.parametrize("old", SWEPT)
def test_inside_a_section_that_a_grid_varies_or_a_rule_compares(refused, old):
    path, name, tags = parts(old)
    section = f"{{{'.'.join(path)}: {flow(tags | {name: '0.5'})}}}"
    told = f"`{name}` is now called `{RENAMED[old]}`"
    if path != ["data"]:  # a whole section `data` would need all that is in it
        assert told in refused(f"{DATA}grid: {{cells: [{section}]}}")
    assert told in refused(f"{DATA}grid: {{seeds: [0, 1], exclude: [{section}]}}")
    assert told in refused(f"{DATA}run: {{resources: [{{when: {section}, cpus: 2}}]}}")


def test_below_a_section_that_was_renamed(refused):
    told = "`unlabelled` is now called `negatives`"
    assert told in refused(DATA, "data.unlabelled.train=drop")
    assert told in refused(f"{DATA}grid: {{axes: {{data.unlabelled.train: [keep, drop]}}}}")


def test_in_a_cluster_profile_and_its_override(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (config_dir() / "clusters").mkdir(parents=True)
    (config_dir() / "clusters" / "mine.yaml").write_text("scheduler: slurm\nside_by_side: 2\n")
    told = "side_by_side: `side_by_side` is now called `concurrent_cells`"
    with pytest.raises(SpecError, match=f"mine.yaml:2: {told}"):
        load_profile("mine")
    with pytest.raises(SpecError, match=f"--set cluster.side_by_side=2: {told}"):
        load_profile("slurm", ["cluster.side_by_side=2"])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train: {optimizer: {name: sgd, share: 0.5}}", "train.optimizer.share"),
        ("train: {loss: {name: focal, smoothing: 0.1}}", "train.loss.smoothing"),
        ("train: {schedule: {name: step, up_share: 0.1}}", "train.schedule.up_share"),
        ("train: {together: true}", "train.together"),
    ],
)
def test_only_where_the_key_stood(refused, text, key):
    said = refused(DATA + text)
    assert f"{key}: unknown key" in said
    assert "is now called" not in said


def test_every_new_name_is_a_key_where_the_old_one_stood():
    definitions = {**Spec.model_json_schema()["$defs"], "Profile": Profile.model_json_schema()}
    known = {key for definition in definitions.values() for key in definition["properties"]}
    assert set(RENAMED.values()) <= known
    assert not {old.rsplit(".", 1)[1] for old in RENAMED} & known


@pytest.mark.parametrize(
    ("section", "answer"),
    [
        ("optimizer: {lr_backbone: 0.1}", "`lr_backbone` is now called `backbone_lr_factor`"),
        ("schedule: {final_share: 0.1}", "`final_share` is now called `final_fraction`"),
        ("loss: {smoothing: 0.1}", "`smoothing` is now called `label_smoothing`"),
    ],
)
def test_in_a_section_that_lacks_its_name_too(refused, section, answer):
    """Both mistakes are told: the missing name, and the new name of the key."""
    said = refused(f"{DATA}train: {{{section}}}\n")
    assert answer in said
    assert "needs the key 'name'" in said
