"""From scores to a leaderboard, a selection and a submission file."""

import csv
import json
import re

import numpy as np
import pytest

from pipeline.data.packed import PackedSet
from pipeline.data.splits import read_split
from pipeline.errors import SubmissionError
from pipeline.evaluation.cell import baselines, evaluate_cell, metric_variants
from pipeline.evaluation.experiment import evaluate_experiment
from pipeline.evaluation.leaderboard import METRIC_COLUMNS, read_leaderboard
from pipeline.evaluation.selection import (
    EvaluationInputs,
    Selection,
    format_leaderboard,
    select_cell,
    selected_cells,
)
from pipeline.evaluation.submission_file import check_submission, write_submission
from pipeline.metrics.decision_rule import out_of_fold_decisions
from pipeline.metrics.multilabel import all_metrics
from pipeline.metrics.thresholds import decide
from pipeline.report import write_report
from pipeline.spec import METRICS, EvaluateSpec, SubmissionSpec, TopCells, TrainSpec
from pipeline.storage.files import write_json
from pipeline.storage.run_dir import ExperimentDir
from pipeline.storage.tables import read_table


@pytest.fixture
def page():
    """Asks for the report to be drawn."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Drawing the report takes seconds; only a test that asks for the page looks at it."""
    if "page" not in request.fixturenames:

        def write_nothing(experiment, planned):
            experiment.report.write_text("undrawn")

        monkeypatch.setattr("pipeline.report.write_report", write_nothing)


@pytest.fixture
def experiment(tmp_path):
    return ExperimentDir(tmp_path / "experiments" / "x")


def finished_cell(experiment, drawn, name, identity, noise, seed=0, **train):
    """A cell whose scores are the truth with some noise."""
    _, folder, split_file = drawn
    packed = PackedSet.open(folder)
    rows = read_split(split_file).validation
    targets_NK = packed.labels_NK[rows]
    rng = np.random.default_rng(seed)
    scores_NK = np.clip(targets_NK * 0.6 + noise * rng.random(targets_NK.shape), 0, 1).astype(np.float32)
    run = experiment.cell(name, identity, {})
    run.path.mkdir(parents=True)
    np.savez(
        run.scores_val,
        ids=np.array([packed.ids[row] for row in rows]),
        labels=np.array(packed.labels),
        scores=scores_NK,
        targets=targets_NK,
    )
    write_rest(run, {"seed": seed, **train} if train else {})
    run.write_manifest(identity, "done")
    return run, scores_NK, targets_NK


def write_rest(run, train=None):
    """What a finished cell holds beside its scores and is read by evaluate."""
    spec = {
        "name": "x",
        **({"train": TrainSpec.model_validate(train).model_dump(mode="json")} if train else {}),
    }
    run.spec.write_text(json.dumps(spec))
    write_json(run.provenance, {})
    run.metrics.write_text("")


def inputs_of(
    experiment, cells, threshold=0.5, select_by="f1_micro", submission=None, others=(), made_by="x.yaml"
):
    evaluate_spec = EvaluateSpec(threshold=threshold, select_by=select_by)
    submission = submission or SubmissionSpec()
    return EvaluationInputs(experiment, tuple(cells), evaluate_spec, submission, ("data",), others, made_by)


def evaluate(experiment, drawn, cells, reasons=None, **settings):
    _, folder, split_file = drawn
    inputs = inputs_of(experiment, cells, **settings)
    evaluate_experiment(inputs, monitor="f1_micro", sets=[(folder, split_file)], reasons=reasons or {})
    write_report(experiment)
    return read_leaderboard(experiment.leaderboard)


@pytest.fixture
def two_cells(experiment, drawn):
    finished_cell(experiment, drawn, "good", "a" * 12, 0.45)
    finished_cell(experiment, drawn, "poor", "b" * 12, 0.9)
    return [("good-aaaaaaaa", "a" * 12), ("poor-bbbbbbbb", "b" * 12)]


def test_the_three_views_are_what_their_names_say(experiment, drawn):
    run, scores_NK, targets_NK = finished_cell(experiment, drawn, "c", "a" * 12, 0.7)
    row = evaluate_cell(run, EvaluateSpec(threshold="per_label")).row
    at50 = decide(scores_NK, np.full(14, 0.5, np.float32))
    fitted, _ = out_of_fold_decisions(EvaluateSpec(threshold="per_label"), scores_NK, targets_NK)
    labelled = targets_NK.any(axis=1)
    for name in METRICS:
        assert row.metrics[name] == all_metrics(scores_NK, fitted, targets_NK)[name]
        assert row.metrics[f"{name}_at50"] == all_metrics(scores_NK, at50, targets_NK)[name]
        expected = all_metrics(scores_NK[labelled], fitted[labelled], targets_NK[labelled])[name]
        assert row.metrics[f"{name}_labelled"] == expected
    report = json.loads(run.report.read_text())
    assert [entry["label"] for entry in report["per_label"]] == list(PackedSet.open(drawn[1]).labels)
    assert report["metrics"] == row.metrics


def test_baselines_are_blank_and_drawn_at_the_training_prevalence(drawn):
    packed, split = PackedSet.open(drawn[1]), read_split(drawn[2])
    blank, prior = baselines(packed, split)
    targets_NK = packed.labels_NK[split.validation]
    assert blank.metrics["f1_micro"] == 0
    assert blank.metrics["exact_match"] == pytest.approx((~targets_NK.any(axis=1)).mean())
    prevalence = packed.labels_NK[split.train].mean()
    assert 0.3 * prevalence < prior.metrics["recall_micro"] < 3 * prevalence
    assert baselines(packed, split)[1].metrics == prior.metrics


def test_the_leaderboard_ranks_cells_beside_baselines_and_equal_results_are_equal_bytes(
    experiment, drawn, two_cells
):
    missing = ("gone-cccccccc", "c" * 12)
    rows = evaluate(experiment, drawn, [*two_cells[::-1], missing])
    names = [row["cell"] for row in rows]
    assert names[0] == "good-aaaaaaaa"
    assert names[-1] == "gone-cccccccc"
    assert {"baseline-blank", "baseline-prior"} < set(names)
    assert rows[-1]["state"] == "missing"
    assert tuple(rows[0]) == ("cell", "state", "error", "in_grid", "recipe", *METRIC_COLUMNS)
    before = experiment.leaderboard.read_bytes()
    evaluate(experiment, drawn, [missing, *two_cells])
    assert experiment.leaderboard.read_bytes() == before


def test_metrics_have_intervals_and_the_pairs_a_verdict(experiment, drawn, two_cells):
    finished_cell(experiment, drawn, "twin", "e" * 12, 0.45)
    good, *_ = evaluate(experiment, drawn, [*two_cells, ("twin-eeeeeeee", "e" * 12)])
    for name in METRICS:
        assert float(good[f"{name}_lo"]) <= float(good[name]) <= float(good[f"{name}_hi"])
    pairs = {(row["a"], row["b"]): row for row in read_table(experiment.comparisons)}
    assert len(pairs) == 3
    against_twin = pairs["good-aaaaaaaa", "twin-eeeeeeee"]
    assert (against_twin["verdict"], float(against_twin["difference"])) == ("no significant difference", 0)
    against_poor = pairs["good-aaaaaaaa", "poor-bbbbbbbb"]
    assert (against_poor["verdict"], against_poor["covers"]) == ("a leads on these images", "images")
    assert 0 < float(against_poor["lo"]) < float(against_poor["difference"]) < float(against_poor["hi"])
    text = format_leaderboard(experiment, "f1_micro")
    assert "no significant difference between: good-aaaaaaaa, twin-eeeeeeee" in text
    assert "on these images good-aaaaaaaa is significantly above: poor-bbbbbbbb" in text
    assert "each was trained once: the luck of training is not covered; add grid.seeds" in text
    assert "better" not in text
    assert f"{float(good['f1_micro_lo']):.4f}-{float(good['f1_micro_hi']):.4f}" in text
    assert not experiment.seeds.exists()


def test_the_seeds_of_a_recipe_are_one_row_and_one_contender(experiment, drawn):
    adam, sgd = {"optimizer": {"name": "adam", "lr": 3e-4}}, {"optimizer": {"name": "sgd", "lr": 0.1}}
    made = [
        finished_cell(experiment, drawn, name, letter * 12, noise, seed, **train)[0]
        for name, letter, noise, seed, train in (
            ("good", "a", 0.45, 0, adam), ("good", "b", 0.46, 1, adam), ("good", "c", 0.44, 2, adam),
            ("poor", "d", 0.9, 0, sgd), ("poor", "e", 0.9, 1, sgd), ("poor", "f", 0.9, 2, sgd),
        )
    ]  # fmt: skip
    rows = evaluate(experiment, drawn, [(run.name, run.name[-1] * 12) for run in made])
    seeds = {row["cell"]: row for row in read_table(experiment.seeds)}
    assert set(seeds) == {"adam-lr0.0003", "sgd-lr0.1"}
    own = [row for row in rows if row["recipe"] == "adam-lr0.0003"]
    values = [float(row["f1_micro"]) for row in own]
    assert [row["set/train.seed"] for row in own] != ["0", "0", "0"]
    assert {row["set/train.optimizer.lr"] for row in own} == {"0.0003"}
    assert (seeds["adam-lr0.0003"]["seeds"], seeds["adam-lr0.0003"]["splits"]) == ("3", "1")
    assert float(seeds["adam-lr0.0003"]["f1_micro_mean"]) == pytest.approx(np.mean(values), abs=1e-5)
    assert float(seeds["adam-lr0.0003"]["f1_micro_sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    (pair,) = read_table(experiment.comparisons)
    assert (pair["a"], pair["b"], pair["verdict"]) == ("adam-lr0.0003", "sgd-lr0.1", "a is better")
    text = format_leaderboard(experiment, "f1_micro")
    line = next(line for line in text.splitlines() if "adam-lr0.0003 " in line)
    assert re.match(
        rf"\* 1 adam-lr0.0003 +3 +{np.mean(values):.4f} +{np.std(values, ddof=1):.4f} +adam +0.0003 ", line
    )
    assert f"selected: {own[0]['cell']} (the best of the best recipe)" in text


def test_the_luckiest_seed_does_not_win(experiment, drawn):
    steady, lucky = {"optimizer": {"name": "adam"}}, {"optimizer": {"name": "adamw"}}
    made = [
        finished_cell(experiment, drawn, "x", letter * 12, noise, seed, **train)[0]
        for letter, noise, seed, train in (
            ("a", 0.55, 0, steady), ("b", 0.55, 1, steady), ("c", 0.45, 0, lucky), ("d", 1.0, 1, lucky),
        )
    ]  # fmt: skip
    rows = evaluate(experiment, drawn, [(run.name, run.name[-1] * 12) for run in made])
    done = [row for row in rows if row["state"] == "done"]
    assert max(done, key=lambda row: float(row["f1_micro"]))["recipe"] == "adamw"
    assert [row["recipe"] for row in done] == ["adam", "adam", "adamw", "adamw"]
    assert Selection.read(experiment).cell == done[0]["cell"]


def test_complete_cells_of_an_earlier_spec_are_ranked_and_marked(experiment, drawn, two_cells):
    other, scores_NK, targets_NK = finished_cell(experiment, drawn, "few", "e" * 12, 0.1)
    with other.scores_val.open("wb") as file:
        labels = np.array(["a"] * 14)
        np.savez(file, ids=np.array(["1", "2"]), labels=labels, scores=scores_NK[:2], targets=targets_NK[:2])
    other.write_manifest("e" * 12, "done")
    good, poor = two_cells
    rows = evaluate(
        experiment, drawn, [poor], others=(good, (other.name, "e" * 12)), made_by="x.yaml --set a=1"
    )
    done = {row["cell"]: row["in_grid"] for row in rows if row["state"] == "done"}
    assert done == {good[0]: "no", poor[0]: "yes"}
    selection = Selection.read(experiment)
    assert (selection.cell, selection.left_out) == (good[0], (other.name,))
    text = format_leaderboard(experiment, "f1_micro")
    assert re.search(r"good-aaaaaaaa .* not of this grid$", text, re.M)
    assert "this grid is x.yaml --set a=1" in text
    assert f"validated on other images or labels, and not ranked: {other.name}" in text
    assert select_cell(experiment, experiment.find("poor")) == poor[0]


def test_calibration_is_reported_with_each_cell(experiment, drawn):
    run, scores_NK, _ = finished_cell(experiment, drawn, "c", "a" * 12, 0.7)
    evaluate_cell(run, EvaluateSpec())
    calibration = json.loads(run.report.read_text())["calibration"]
    assert sum(row["count"] for row in calibration["reliability"]) == scores_NK.size
    by_hand = sum(
        row["count"] * abs(row["mean_score"] - row["share_true"]) for row in calibration["reliability"]
    )
    assert calibration["ece"] == pytest.approx(by_hand / scores_NK.size)


@pytest.mark.parametrize("cells", [TopCells(top=2), ("good", "other")])
def test_an_ensemble_is_measured_and_selected_unless_the_user_picks(experiment, drawn, two_cells, cells):
    _, scores_NK, targets_NK = finished_cell(experiment, drawn, "other", "e" * 12, 0.6, seed=1)
    submission = SubmissionSpec(cells=cells)
    rows = evaluate(experiment, drawn, [*two_cells, ("other-eeeeeeee", "e" * 12)], submission=submission)
    with np.load(experiment.path / "good-aaaaaaaa" / "scores_val.npz") as file:
        mean_NK = ((scores_NK.astype(float) + file["scores"]) / 2).astype(np.float32)
    row = next(row for row in rows if row["cell"] == "ensemble")
    expected = all_metrics(mean_NK, decide(mean_NK, np.full(14, 0.5)), targets_NK)
    assert {name: float(row[name]) for name in METRICS} == pytest.approx(expected, abs=1e-6)
    assert [run.name for run in selected_cells(experiment)] == ["good-aaaaaaaa", "other-eeeeeeee"]
    assert "ensemble: mean scores of good-aaaaaaaa, other-eeeeeeee" in format_leaderboard(
        experiment, "f1_micro"
    )
    assert any("ensemble" in (pair["a"], pair["b"]) for pair in read_table(experiment.comparisons))
    assert json.loads((experiment.path / "ensemble" / "report.json").read_text())["metrics"]["f1_micro"]
    select_cell(experiment, experiment.find("poor"))
    assert [run.name for run in selected_cells(experiment)] == ["poor-bbbbbbbb"]
    assert select_cell(experiment, None) == "ensemble"


def test_an_ensemble_that_cannot_be_is_said_and_nothing_else_is_submitted(experiment, drawn, two_cells):
    evaluate(experiment, drawn, two_cells, submission=SubmissionSpec(cells=("good", "gone")))
    assert (
        "no finished cell starts with 'gone'; finished: good-aaaaaaaa, poor-bbbbbbbb"
        in format_leaderboard(experiment, "f1_micro")
    )
    with pytest.raises(SubmissionError, match="'gone'"):
        selected_cells(experiment)


def test_lower_is_better_where_it_is(experiment, drawn, two_cells):
    rows = evaluate(experiment, drawn, two_cells, select_by="hamming_loss")
    values = [float(row["hamming_loss"]) for row in rows]
    assert values == sorted(values)
    assert rows[0]["cell"] == "good-aaaaaaaa"


def test_a_failed_cell_has_a_row_with_its_reason(page, experiment, drawn, two_cells):
    failed = experiment.cell("bad", "d" * 12, {})
    failed.path.mkdir()
    failed.write_manifest("d" * 12, "failed", error="no memory")
    rows = evaluate(experiment, drawn, [*two_cells, (failed.name, "d" * 12)])
    assert (rows[-1]["cell"], rows[-1]["state"], rows[-1]["error"]) == ("bad-dddddddd", "failed", "no memory")
    assert "no memory" in format_leaderboard(experiment, "f1_micro")
    assert "no memory" in experiment.report.read_text()


def test_damaged_scores_are_a_row_not_a_crash(experiment, drawn, two_cells):
    path = experiment.path / "good-aaaaaaaa" / "scores_val.npz"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    rows = evaluate(experiment, drawn, two_cells)
    assert rows[0]["cell"] == "poor-bbbbbbbb"
    assert "does not match its digest" in rows[-1]["error"]


def test_the_best_is_selected_until_the_user_picks_another(experiment, drawn, two_cells):
    evaluate(experiment, drawn, two_cells)
    assert selected_cells(experiment)[0].name == "good-aaaaaaaa"
    assert select_cell(experiment, experiment.find("poor")) == "poor-bbbbbbbb"
    assert "\n* 2 poor-bbbbbbbb" in format_leaderboard(experiment, "f1_micro")
    evaluate(experiment, drawn, two_cells)
    assert selected_cells(experiment)[0].name == "poor-bbbbbbbb"
    assert select_cell(experiment, None) == "good-aaaaaaaa"
    assert inputs_of(experiment, two_cells).is_done
    assert not inputs_of(experiment, two_cells[:1]).is_done
    assert not inputs_of(experiment, two_cells, select_by="f1_macro").is_done


def test_a_pick_that_is_gone_gives_way_to_the_best(experiment, drawn, two_cells):
    evaluate(experiment, drawn, two_cells)
    select_cell(experiment, experiment.find("poor"))
    evaluate(experiment, drawn, two_cells[:1])
    assert selected_cells(experiment)[0].name == "good-aaaaaaaa"


def test_a_selection_is_read_as_it_was_written(experiment, drawn, two_cells):
    evaluate(experiment, drawn, two_cells)
    selection = Selection.read(experiment)
    assert (selection.cell, selection.cells, selection.picked_by) == (
        "good-aaaaaaaa",
        ("good-aaaaaaaa",),
        "best",
    )
    assert selection.packed == drawn[1]
    assert selection.value == pytest.approx(float(read_leaderboard(experiment.leaderboard)[0]["f1_micro"]))
    before = experiment.selected.read_bytes()
    selection.write(experiment)
    assert experiment.selected.read_bytes() == before


@pytest.mark.parametrize("damage", ["{", '{"inputs": 3}', '{"evaluate": {"threshold": "no rule"}}', "[]"])
def test_a_damaged_selection_is_said_to_be_and_made_anew(experiment, drawn, two_cells, damage, capsys):
    assert Selection.read(experiment) == Selection()  # before there is one
    assert capsys.readouterr().out == ""
    evaluate(experiment, drawn, two_cells)
    experiment.selected.write_text(damage)
    assert Selection.read(experiment) == Selection()
    said = capsys.readouterr().out
    assert f"{experiment.selected}: is damaged (" in said
    assert "cells are ranked again" in said
    assert not inputs_of(experiment, two_cells).is_done
    with pytest.raises(SubmissionError, match="no cell is selected"):
        selected_cells(experiment)
    evaluate(experiment, drawn, two_cells)
    assert selected_cells(experiment)[0].name == "good-aaaaaaaa"


def test_without_a_finished_cell_there_is_nothing_to_select(experiment, drawn):
    evaluate(experiment, drawn, [("gone-cccccccc", "c" * 12)])
    with pytest.raises(SubmissionError, match="no cell is selected"):
        selected_cells(experiment)


def test_cells_validated_on_different_images_are_said_to_be(experiment, drawn, two_cells):
    run, scores_NK, targets_NK = finished_cell(experiment, drawn, "few", "e" * 12, 0.5)
    with run.scores_val.open("wb") as file:
        np.savez(
            file,
            ids=np.array(["1", "2"]),
            labels=np.array(["a"] * 14),
            scores=scores_NK[:2],
            targets=targets_NK[:2],
        )
    write_rest(run)
    run.write_manifest("e" * 12, "done")
    evaluate(experiment, drawn, [*two_cells, (run.name, "e" * 12)])
    assert "validated on different images" in format_leaderboard(experiment, "f1_micro")
    evaluate(experiment, drawn, two_cells)
    assert "different images" not in format_leaderboard(experiment, "f1_micro")


def test_views_of_a_split_without_labelled_images_leave_that_view_out():
    zeros = np.zeros((3, 2), np.uint8)
    values = metric_variants(zeros.astype(np.float32), zeros, zeros, zeros)
    assert "f1_micro_labelled" not in values
    assert values["exact_match"] == 1


# ---------------------------------------------------------------- submission


NAMES, LABELS = ["im2.jpg", "im10.jpg"], ["dog", "tree"]
DECISIONS = np.array([[0, 1], [1, 0]], np.uint8)


def test_a_submission_has_the_promised_form(tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(path, NAMES, LABELS, DECISIONS)
    assert path.read_text() == "ids,dog,tree\nim2.jpg,0,1\nim10.jpg,1,0\n"
    check_submission(path, NAMES, LABELS, DECISIONS)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda rows: [["ids", "tree", "dog"], *rows[1:]], "the header is"),
        (lambda rows: rows[:-1], "1 rows for 2 test images"),
        (lambda rows: [rows[0], rows[2], rows[1]], r"submission.csv:2: .* is not the row of im2.jpg"),
        (lambda rows: [*rows[:2], ["im10.jpg", "1", "2"]], r"submission.csv:3"),
        (lambda rows: [*rows[:2], ["im10.jpg", "1", ""]], r"submission.csv:3"),
        (lambda rows: [*rows[:2], ["im10.jpg", "0", "0"]], r"submission.csv:3"),
    ],
)
def test_the_check_finds_every_difference(tmp_path, change, error):
    path = tmp_path / "submission.csv"
    write_submission(path, NAMES, LABELS, DECISIONS)
    rows = list(csv.reader(path.read_text().splitlines()))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(change(rows))
    with pytest.raises(SubmissionError, match=error):
        check_submission(path, NAMES, LABELS, DECISIONS)
