"""Cells of an earlier spec or --set, and grids over splits: what the leaderboard and the selection make of them."""

import csv
import json
import re
import shutil

import pytest

from jobs import ledger
from jobs.planning.plan import make_plan
from pipeline.predictor import Predictor
from pipeline.spec.reading import read_spec
from pipeline.storage.run_dir import RunDir
from tests.cells import jobs, packed_project, project

RATES = "grid: {axes: {train.optimizer: [{name: adam, lr: 3e-3}, {name: adam, lr: 1e-6}]}}"


def table(root):
    with (root / "experiments" / "x" / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def selected(root):
    return json.loads((root / "experiments" / "x" / "selected.json").read_text())


@pytest.mark.slow
def test_set_does_not_hide_the_result_of_the_experiment(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip, RATES, model={"name": "cnn2"}, epochs=3)
    assert jobs("grid", spec, cwd=tmp_path)[0] == 0
    best = selected(tmp_path)["cell"]
    worse = "grid={axes: {train.optimizer: [{name: sgd, lr: 1e-6}]}}"
    status, printed = jobs("grid", spec, "--set", worse, cwd=tmp_path)
    assert status == 0, printed
    assert selected(tmp_path)["cell"] == best
    rows = {row["cell"]: row for row in table(tmp_path) if row["state"] == "done"}
    assert len(rows) == 3
    assert {row["in_grid"] for row in rows.values()} == {"yes", "no"}
    assert rows[best]["in_grid"] == "no"
    assert rows[best]["set/train.optimizer.lr"] == "0.003"
    assert "cells of an earlier spec or --set are ranked too" in printed
    assert f"this grid is experiments/x.yaml --set '{worse}'" in printed
    page = (tmp_path / "experiments" / "x" / "report.html").read_text()
    assert "made from experiments/x.yaml --set " in page
    assert Predictor.load(tmp_path / "experiments" / "x").made_by.startswith("experiments/x.yaml --set ")
    assert (
        "note: Cells are ranked by f1_micro at the fixed threshold 0.5" in jobs("plan", spec, cwd=tmp_path)[1]
    )
    (other,) = (name for name, row in rows.items() if row["in_grid"] == "no" and name != best)
    assert jobs("select", spec, "--set", worse, "--run", other, cwd=tmp_path)[0] == 0
    assert selected(tmp_path)["cell"] == other
    assert jobs("grid", spec, cwd=tmp_path)[0] == 0
    assert selected(tmp_path)["cell"] == other  # the user's pick stays


def test_cells_are_known_by_their_hash_whatever_an_earlier_version_called_them(tmp_path, drawn_zip):
    text = "grid: {axes: {train.augment.crop: [null, [0.5, 1]]}}"
    spec = packed_project(tmp_path, drawn_zip, text)
    finished, waiting = make_plan(read_spec(spec)).cells
    assert finished.run.name.startswith("cnn3-adam-")
    suffix = finished.identity[:8]
    earlier = finished.run.path.with_name(f"cropnone-{suffix}")
    earlier.mkdir(parents=True)
    with RunDir(earlier).owned():
        RunDir(earlier).write_manifest(finished.identity, "failed", error="broken")
    submitted = {"cell": f"of_an_earlier_version-{waiting.identity[:8]}", "identity": waiting.identity}
    ledger.append(make_plan(read_spec(spec)).experiment.ledger, "submitted", jobs=["7"], **submitted)
    found = make_plan(read_spec(spec)).cells
    assert [cell.run.name for cell in found] == [earlier.name, submitted["cell"]]
    # an intent that broke off before the job's number was known counts too; another identity does not
    other = {"cell": f"of_another-{suffix}", "identity": finished.identity[:8] + "0" * 56}
    shutil.rmtree(earlier)
    ledger.append(make_plan(read_spec(spec)).experiment.ledger, "submitted", jobs=["8"], **other)
    assert make_plan(read_spec(spec)).cells[0].run.name == finished.run.name
    line = {"cell": f"intended-{suffix}", "identity": finished.identity}
    ledger.append(make_plan(read_spec(spec)).experiment.ledger, "intent", lines=[line])
    assert make_plan(read_spec(spec)).cells[0].run.name == line["cell"]


def test_a_longer_run_is_said_to_start_anew(tmp_path, finished):
    shutil.copytree(finished.parent.parent, tmp_path, dirs_exist_ok=True)
    spec = tmp_path / "experiments" / "x.yaml"
    status, printed = jobs("plan", spec, "--set", "train.epochs=5", cwd=tmp_path)
    assert status == 0
    assert (
        len(
            re.findall(
                r"note: \S+: 2 epochs of it are trained in \S+, but a run of 5 is another cell", printed
            )
        )
        == 4
    )
    assert "epochs of it" not in jobs("plan", spec, cwd=tmp_path)[1]
    assert "epochs of it" not in jobs("plan", spec, "--set", "train.batch_size=8", cwd=tmp_path)[1]


def test_a_forgotten_set_is_recalled(tmp_path, finished):
    shutil.copytree(finished.parent.parent, tmp_path, dirs_exist_ok=True)
    spec = tmp_path / "experiments" / "x.yaml"
    assert jobs("evaluate", spec, "--set", "train.epochs=2", cwd=tmp_path)[0] == 0
    spec.write_text(spec.read_text().replace('"epochs": 2', '"epochs": 3'))
    said = "note: 4 finished cells of this spec are of --set train.epochs=2; repeat it to go on with them\n"
    for verb in ("plan", "status"):
        assert said in jobs(verb, spec, cwd=tmp_path)[1]
        assert said in jobs(verb, spec, "--set", "train.batch_size=8", cwd=tmp_path)[1]
        assert "repeat it" not in jobs(verb, spec, "--set", "train.epochs=2", cwd=tmp_path)[1]


@pytest.mark.slow
def test_a_grid_over_splits_is_one_row_a_recipe_with_baselines_of_each(tmp_path, drawn_zip):
    text = (
        "grid: {axes: {train.optimizer.lr: [3e-3, 1e-6], data.split: [{method: random, validation: 0.2, seed: 0}, "
        "{method: random, validation: 0.2, seed: 1}]}}"
    )
    spec = project(tmp_path, drawn_zip, text, model={"name": "cnn2"}, optimizer={"name": "adam"})
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 0, printed
    rows = table(tmp_path)
    done = [row for row in rows if row["state"] == "done"]
    assert [row["recipe"] for row in done] == ["lr0.003", "lr0.003", "lr1e-06", "lr1e-06"]
    assert {row["set/data.split.seed"] for row in done} == {"0", "1"}
    baselines = [row["cell"] for row in rows if row["state"] == "baseline"]
    assert {"baseline-blank", "baseline-prior"} < set(baselines)
    assert len(baselines) == 6
    with (tmp_path / "experiments" / "x" / "leaderboard_seeds.csv").open(newline="") as file:
        recipes = {row["cell"]: row for row in csv.DictReader(file)}
    assert recipes["lr0.003"]["splits"] == "2"
    assert "means over 2 splits; differences between recipes are not tested" in printed
    assert "compare them with care" not in printed
