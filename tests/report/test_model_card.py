"""The model card: beside what is selected, true, equal bytes for equal results, and never in the way."""

import csv
import dataclasses
import platform
import re
import shutil
import types

import pytest
import yaml

from pipeline.evaluation.selection import Selection, select_cell
from pipeline.report.card_sections import inline, licence
from pipeline.report.facts import read_facts
from pipeline.report.model_card import is_unedited, write_card
from pipeline.storage.files import read_json, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir
from tests.cells import jobs

pytestmark = pytest.mark.slow


@pytest.fixture
def experiment(finished, tmp_path):
    return ExperimentDir(shutil.copytree(finished, tmp_path / "experiments" / "x"))


def cards(experiment):
    return sorted(path.parent.name for path in experiment.path.glob("*/MODEL_CARD.md"))


def written(experiment):
    """The card of the selected cell, written now."""
    write_card(read_facts(experiment, ()))
    return RunDir(experiment.path / Selection.read(experiment).cell).card.read_text()


def table(card, first):
    """The Markdown table whose head begins with `first`, as rows of entries."""
    lines = card.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([entry.strip() for entry in line.strip("|").split(" | ")])
    return [rows[0], *rows[2:]]


def leaderboard(experiment):
    with experiment.leaderboard.open(newline="") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def test_evaluation_has_put_it_beside_the_selected_cell_alone(finished):
    experiment = ExperimentDir(finished)
    selected = Selection.read(experiment).cell
    assert cards(experiment) == [selected]
    run = RunDir(finished / selected)
    assert is_unedited(run.card)
    assert run.card.name not in run.read_manifest()["files"]
    assert run.why_not_done(run.read_manifest()["identity"]) is None


def test_the_front_matter_is_what_hugging_face_reads(experiment):
    card = written(experiment)
    cell = Selection.read(experiment).cell
    _, front, body = card.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["pipeline_tag"] == "image-classification"
    assert {"image-classification", "multi-label", "cnn3"} <= set(found["tags"])
    assert (
        {"f1", "exact_match"}
        <= set(found["metrics"])
        <= {"f1", "precision", "recall", "accuracy", "exact_match"}
    )
    (model,) = found["model-index"]
    (result,) = model["results"]
    assert {*result["task"], *result["dataset"]} == {"type", "name"}
    row = leaderboard(experiment)[cell]
    for metric in result["metrics"]:
        assert metric["value"] == float(row[metric["name"].removesuffix(" (validation)")])
    assert body.lstrip().startswith(f"# x: {cell}")


def test_its_numbers_are_those_of_the_tables(experiment):
    card = written(experiment)
    rows, tested = leaderboard(experiment), read_json(experiment.test_metrics)["metrics"]
    own = rows[Selection.read(experiment).cell]
    head, *lines = table(card, "metric")
    assert head == ["metric", "validation", "95 %", "baseline-blank", "baseline-prior", "test", "95 %"]
    assert lines[0][0] == "f1_micro"
    for name, value, ends, blank, prior, test, test_ends in lines:
        assert value == f"{float(own[name]):.4f}"
        assert ends == f"{float(own[f'{name}_lo']):.4f} – {float(own[f'{name}_hi']):.4f}"
        assert (blank, prior) == tuple(
            f"{float(rows[f'baseline-{b}'][name]):.4f}" for b in ("blank", "prior")
        )
        assert test == f"{tested[name]['value']:.4f}"
        assert test_ends == f"{tested[name]['lo']:.4f} – {tested[name]['hi']:.4f}"
    assert table(card, "split")[1:] == [["train", "192", "97"], ["validation", "48", "21"]]
    recipe = dict(table(card, "")[1:])
    assert (recipe["epochs"], recipe["seed"], recipe["loss"]) == ("2 of 2", own["set/train.seed"], "name bce")
    assert "lr " + own["set/train.optimizer.lr"] in recipe["optimizer"]
    assert len(table(card, "label")) == 1 + 14


def test_equal_results_are_equal_bytes_without_a_path_of_this_machine(experiment, tmp_path):
    card = written(experiment)
    assert written(experiment) == card
    moved = ExperimentDir(shutil.copytree(experiment.path, tmp_path / "elsewhere" / "experiments" / "x"))
    assert written(moved) == card
    source = str(Selection.read(experiment).packed.parents[2])
    for private in (str(tmp_path), source, f"{platform.node()} "):
        assert private not in card


def test_another_selection_moves_it_and_an_edited_card_stays(experiment, capsys):
    first = Selection.read(experiment).cell
    other = next(c for c, row in leaderboard(experiment).items() if row["state"] == "done" and c != first)
    written(experiment)
    select_cell(experiment, RunDir(experiment.path / other))
    assert "Test: not known" in written(experiment), "the test score is of the first one"
    assert cards(experiment) == [other]
    card = RunDir(experiment.path / other).card
    card.write_text(card.read_text().replace("**Not stated", "For birds alone. **Not stated"))
    edited = card.read_bytes()
    capsys.readouterr()
    write_card(read_facts(experiment, ()))
    assert card.read_bytes() == edited
    assert "was edited (or damaged) since it was written, and is kept" in capsys.readouterr().err
    select_cell(experiment, RunDir(experiment.path / first))
    write_card(read_facts(experiment, ()))
    assert cards(experiment) == sorted([first, other])


def test_an_evaluation_does_not_fail_for_its_card(experiment, capsys):
    run = RunDir(experiment.path / Selection.read(experiment).cell)
    body = run.report.read_text()
    run.card.unlink(missing_ok=True)
    for damaged in (body[:100], "{}"):
        run.report.write_text(damaged)
        write_card(read_facts(experiment, ()))
        assert "the model card is not written, everything else is: " in capsys.readouterr().err
        assert not run.card.exists()
    run.report.write_text(body)
    run.card.mkdir()  # a place that cannot be written to
    write_card(read_facts(experiment, ()))
    assert f"{run.card}" in capsys.readouterr().err


def test_limits_are_stated(experiment):
    limits = written(experiment).split("## Limits")[1].split("## ")[0]
    assert "No validation image has checker" in limits
    assert re.search(r"fewer than 20 validation images[^\n]*: blue \d+, circle 16", limits)
    assert "Picked from 4 cells" in limits
    assert "Not stated: what it is for, what it must not be used for" in limits
    assert "The test score may be" not in limits
    selection = Selection.read(experiment)
    changed = {"mixed_hardware": "cells were trained on different hardware: A and B", "codes": ("a", "b")}
    selection.model_copy(update={**changed, "comparable": False, "picked_by": "user"}).write(experiment)
    tested = read_json(experiment.test_metrics)
    write_json(
        experiment.test_metrics, tested | {"note": "; 3 of 40 test images are in training or validation too"}
    )
    limits = written(experiment).split("## Limits")[1].split("## ")[0]
    for said in (
        "The test score may be too good: 3 of 40 test images are in training",
        "different hardware: A and B",
        "come from different code",
        "validated on different images",
    ):
        assert said in limits
    assert "Picked from" not in limits


def test_an_ensemble_has_a_card_with_a_column_for_each_member(finished, tmp_path):
    root = shutil.copytree(finished.parent.parent, tmp_path / "project")
    setting = "submission.cells={top: 2}"
    status, printed = jobs("evaluate", root / "experiments/x.yaml", "--set", setting, cwd=root)
    assert status == 0, printed
    experiment = ExperimentDir(root / "experiments/x")
    selection = Selection.read(experiment)
    assert (selection.cell, len(selection.cells)) == ("ensemble", 2)
    assert cards(experiment) == ["ensemble"]
    card = (experiment.path / "ensemble/MODEL_CARD.md").read_text()
    assert table(card, "")[0][1:] == list(selection.cells)
    assert all(f"`{name}/`" in card for name in selection.cells)
    assert card.count("drawn.zip, packed as") == 1


def test_names_of_labels_stay_in_their_cell_and_weights_have_their_licence():
    assert inline("a|b\n<script>`x`") == r"a\|b &lt;script>\`x\`"

    def said(weights, name="resnet34", **recorded):
        settings = {"train.model.weights": weights, "train.model.name": name}
        return licence([types.SimpleNamespace(settings=settings, provenance={"weights": recorded or None})])[
            0
        ]

    assert "CC BY-NC 4.0" in said("IMAGENET1K_SWAG_E2E_V1")
    assert "not known" in said("IMAGENET1K_V1")
    assert "random" in said("none")
    assert "/home" not in said("/home/me/own.pt")
    name = "timm/convnextv2_tiny.fcmae"
    page = f"https://huggingface.co/{name}"
    limit = "cc-by-nc-4.0, which forbids commercial use"
    assert f"began as {name}, whose licence is {limit} ({page})." in said("pretrained", name)
    name = "timm/resnet50.a1_in1k"
    assert f"began as {name}, whose licence is apache-2.0 (" in said("pretrained", name)
    assert "whose licence is mit." in said("pretrained", "timm/newer.in1k", licence="mit")


def test_no_card_stays_where_nothing_is_selected_any_more(experiment):
    facts = read_facts(experiment, ())
    assert cards(experiment)
    write_card(dataclasses.replace(facts, best=None))
    assert cards(experiment) == []
