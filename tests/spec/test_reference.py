"""Every key explains itself: in the JSON Schema, in docs/spec.md and in the terminal, from one text."""

import json
import subprocess
import sys
from typing import Annotated, Literal, get_args

import pytest
from pydantic import Discriminator

from jobs.cli import main
from jobs.clusters.profile import Profile
from jobs.commands.reference import reference
from jobs.local.snapshot import snapshot
from pipeline.spec import LabelsSpec, LossSpec, OptimizerSpec, ScheduleSpec, Section, Sgd, SplitSpec
from pipeline.spec.reading import json_schema
from pipeline.spec.reference import describe, parts
from tests.conftest import ROOT

# what reads a spec parses no source; what asks for the texts does
COUNT_PARSED = """
import sys
parsed = []
def heard(event, arguments):
    if event == "compile" and arguments[1] == "<unknown>":  # as ast.parse calls it
        parsed.append(arguments)
sys.addaudithook(heard)
from pathlib import Path
from jobs.cli import main
from pipeline.spec.grid import expand_grid
from pipeline.spec.reading import json_schema, read_spec
expand_grid(read_spec(Path("experiments/demo.yaml")))
before = len(parsed)
json_schema()
print(before, len(parsed) > 0)
"""


class Lion(Section):
    """Evolved sign momentum (Chen et al. 2023)."""

    name: Literal["lion"]
    lr: float = 1e-4
    """The size of every step."""


class Recipe(Section):
    """A section with a union."""

    optimizer: Annotated[Sgd | Lion, Discriminator("name")] = Sgd(name="sgd")
    """How weights follow the gradient."""


def properties_of(schema):
    for name, section in {schema["title"]: schema, **schema["$defs"]}.items():
        for key, field in section["properties"].items():
            yield f"{name}.{key}", field


@pytest.mark.parametrize("schema", [json_schema, lambda: describe(Profile)], ids=["spec", "cluster"])
def test_no_property_is_without_a_description(schema):
    found = dict(properties_of(schema()))
    assert len(found) > 30
    assert [key for key, field in found.items() if len(field.get("description", "")) < 10] == []
    assert not [
        key for key, field in found.items() if {"identity", "same_batches", "introduced"} & field.keys()
    ]


def test_a_text_stands_under_its_field_and_may_come_from_the_section_derived_from():
    fields = dict(properties_of(json_schema()))
    assert fields["AugmentSpec.random_erasing"]["description"].startswith("The probability that a rectangle")
    assert "L2 penalty" in fields["Adam.weight_decay"]["description"]
    assert "L2 penalty" not in fields["AdamW.weight_decay"]["description"]
    assert fields["Adam.name"]["description"] == "Chooses this section. Adam (Kingma & Ba 2015)."


def test_the_texts_are_there_in_a_snapshot_of_the_code_too(tmp_path):
    code = snapshot(tmp_path)
    command = "import json; from pipeline.spec.reading import json_schema; print(json.dumps(json_schema()))"
    done = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(code)},
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(json_schema()))


def test_reading_a_spec_parses_no_source():
    done = subprocess.run(
        [sys.executable, "-c", COUNT_PARSED], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "0 True\n"


def test_the_page_of_all_keys_is_that_of_the_code():
    """Made anew by `python -m jobs reference > docs/spec.md`."""
    assert (ROOT / "docs" / "spec.md").read_text() == reference() + "\n"


@pytest.mark.parametrize("union", [LossSpec, OptimizerSpec, ScheduleSpec, SplitSpec, LabelsSpec])
def test_every_kind_of_a_section_is_on_the_page(union):
    members, tag = get_args(union)
    text = reference()
    for member in get_args(members):
        if union is LossSpec:  # a function chooses
            member, chosen = get_args(member)
            key, value = "name", chosen.tag
        else:
            key = tag.discriminator
            (value,) = get_args(member.model_fields[key].annotation)
        assert f"with `{key}: {value}`\n\n{member.__doc__.splitlines()[0]}" in text


def test_a_kind_that_is_added_to_a_union_is_described_by_itself():
    sgd, lion = (part for part in parts(describe(Recipe), "train") if part.tag)
    assert (sgd.path, sgd.choice) == ("train.optimizer", "`sgd`")
    assert (lion.path, lion.tag, lion.choice) == ("train.optimizer", "name", "`lion`")
    (lr,) = lion.keys
    assert (lr.name, lr.values, lr.default, lr.text) == ("lr", "number", "0.0001", "The size of every step.")


# ---------------------------------------------------------------- in the terminal


def keys(capsys, *prefix):
    status = main(["keys", *prefix])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_a_section_shows_its_keys_with_range_default_and_text(capsys):
    status, said = keys(capsys, "train.augment")
    assert status == 0
    assert (
        "  hflip  (number from 0 to 1; default 0.5)\n      The probability of mirroring left and right."
        in said
    )
    assert "  crop  ([number from 0 to 1, number from 0 to 1] or null; default null)" in said
    assert "train.model" not in said


def test_a_union_shows_every_kind_and_a_prefix_what_is_below(capsys):
    _, said = keys(capsys, "train.optimizer")
    assert [line for line in said.splitlines() if line.startswith("train.optimizer name: sgd: ")]
    assert "train.optimizer name: adadelta: Adadelta (Zeiler 2012)." in said
    _, said = keys(capsys, "run")
    assert "run.resources[]: What the cells" in said


def test_a_section_that_every_kind_of_a_union_holds_is_shown_once_behind_them(capsys):
    _, said = keys(capsys, "train.optimizer")
    heads = [line for line in said.splitlines() if line.startswith("train.optimizer")]
    assert [line for line in heads if "groups[]" in line] == heads[-1:]


def test_one_key_is_shown_alone(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")  # wide enough for the text in one line
    assert keys(capsys, "train.epochs") == (
        0,
        "train\n  epochs  (whole number at least 1; default 15)\n"
        "      Passes over the training images. The best epoch by `monitor` is kept, not the last.\n",
    )
    assert keys(capsys, "run.resources.cpus")[1].startswith("run.resources[]\n  cpus  ")


def test_without_a_prefix_the_sections_are_listed(capsys):
    status, said = keys(capsys)
    assert status == 0
    named = [line.split()[0] for line in said.splitlines() if line]
    assert {"data", "train.optimizer", "run.resources[]", "cluster.partitions.NAME"} <= set(named)
    assert "name: sgd, adam, adamw, rmsprop, adadelta" in said


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("train.augmnt", "train.augmnt: unknown key; did you mean `train.augment`?"),
        ("lr", "did you mean `train.optimizer.lr`?"),
        ("patience_epochs", "did you mean `train.patience_epochs` or `train.schedule.patience_epochs`?"),
        ("train.score_px", "`score_px` is now called `eval_image_px`"),
        ("zzz", "zzz: unknown key; known: data, data.labels"),
        ("", "unknown key"),
    ],
)
def test_a_wrong_prefix_is_answered(capsys, prefix, said):
    status, answer = keys(capsys, prefix)
    assert status == 2
    assert said in answer


def test_reference_prints_the_page(capsys):
    assert main(["reference"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "spec.md").read_text()
