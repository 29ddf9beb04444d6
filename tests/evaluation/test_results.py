"""An experiment in Python: numbers as in its files, refusals in words, and the shipped notebook runs."""

import ast
import contextlib
import html
import io
import json
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from pipeline.errors import CheckpointError, PipelineError, SpecError
from pipeline.evaluation.selection import Selection
from pipeline.predictor import Predictor
from pipeline.results import Experiment
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.tables import read_table
from tests.cells import clean_environment
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(finished, tmp_path):
    """The finished experiment as `experiments/demo` of a folder, to be damaged."""
    return shutil.copytree(finished, tmp_path / "experiments" / "demo")


def test_rows_hold_the_numbers_of_the_tables(finished):
    experiment, folder = Experiment(finished), ExperimentDir(finished)
    for rows, path in (
        (experiment.leaderboard, folder.leaderboard),
        (experiment.seeds, folder.seeds),
        (experiment.comparisons, folder.comparisons),
    ):
        written = read_table(path)
        assert len(rows) == len(written) > 0
        for row, texts in zip(rows, written, strict=True):
            assert row.keys() == texts.keys()
            assert {name for name, value in row.items() if value is None} == {
                n for n, t in texts.items() if not t
            }
            for name, value in row.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    assert value == float(texts[name])
    best = next(row for row in experiment.leaderboard if row["state"] == "done")
    assert type(best["f1_micro"]) is float
    assert (best["in_grid"], type(best["set/train.seed"]), best["error"]) == (True, int, None)
    assert best["set/train.optimizer.lr"] == experiment.settings(best["cell"])["train.optimizer.lr"]


def test_curves_scores_and_settings_are_those_of_the_cells_files(finished):
    experiment = Experiment(finished)
    selection = Selection.read(ExperimentDir(finished))
    assert experiment.selected == selection.cell
    for cell in experiment.cells:
        run = RunDir(finished / cell)
        curves, found = experiment.curves(cell), experiment.scores(cell)
        epochs = [row for row in read_jsonl(run.metrics) if "validation/loss" in row]
        assert curves["epoch"].tolist() == [1, 2]
        assert curves["validation/loss"].tolist() == [row["validation/loss"] for row in epochs]
        with np.load(run.scores_val) as file:
            for name in ("ids", "labels", "scores", "targets"):
                np.testing.assert_array_equal(getattr(found, name), file[name])
    unnamed, named = experiment.scores(), experiment.scores(selection.cell)
    np.testing.assert_array_equal(unnamed.scores, named.scores)
    assert experiment.settings(selection.cell[:-3]) == experiment.settings()


def test_the_mean_of_an_ensemble_is_what_its_members_score(copy):
    folder = ExperimentDir(copy)
    selection = Selection.read(folder)
    members = tuple(row["cell"] for row in read_table(folder.leaderboard) if row["state"] == "done")[:2]
    selection.model_copy(update={"cell": "ensemble", "cells": members, "ensemble": members}).write(folder)
    experiment = Experiment(copy)
    several = [experiment.scores(member).scores for member in members]
    np.testing.assert_allclose(experiment.scores().scores, np.mean(several, axis=0), atol=1e-7)
    with pytest.raises(SpecError, match=f"no training of its own.*{members[0]}, {members[1]}"):
        experiment.curves()


def test_text_and_html_show_the_leaderboard_and_the_page_is_whole_in_its_frame(copy):
    experiment = Experiment(copy)
    assert f"selected: {experiment.selected}" in repr(experiment)
    shown = experiment._repr_html_()
    assert f"* {experiment.selected}" in shown
    assert all(row["cell"] in shown for row in experiment.leaderboard)
    frame = experiment.report(height_px=300)._repr_html_()
    (page,) = re.findall(r'^<iframe srcdoc="([^"]*)"[^>]*></iframe>$', frame)
    assert html.unescape(page) == (copy / "report.html").read_text()
    assert "300px" in frame
    (copy / "report.html").unlink()
    with pytest.raises(CheckpointError, match="make report"):
        experiment.report()


def test_what_is_not_there_is_named_with_what_is(copy, monkeypatch):
    monkeypatch.chdir(copy.parent.parent)
    with pytest.raises(
        SpecError, match=r"experiments/dmo: there is no such experiment; in experiments/: demo$"
    ):
        Experiment("experiments/dmo")
    experiment = Experiment("experiments/demo.yaml")  # its spec is a name too
    with pytest.raises(SpecError, match="is a cell's folder; name its experiment, experiments/demo"):
        Experiment(f"experiments/demo/{experiment.selected}")
    with pytest.raises(SpecError, match="nope: no cell starts with that in experiments/demo; cells: lr0"):
        experiment.curves("nope")
    with pytest.raises(SpecError, match=r"lr0\.0: 4 cells start with that"):
        experiment.curves("lr0.0")
    (copy / "selected.json").unlink()
    assert "nothing is ranked yet" in repr(experiment)
    assert "nothing is ranked yet" in experiment._repr_html_()
    for use in (
        lambda: experiment.leaderboard,
        lambda: experiment.selected,
        experiment.predictor,
        experiment.scores,
    ):
        with pytest.raises(
            CheckpointError, match=r"nothing is ranked yet; run `labelgrid evaluate experiments/demo"
        ):
            use()
    assert len(experiment.curves(experiment.cells[0])["epoch"]) == 2  # while a sweep runs


def test_an_edited_table_and_damaged_scores_are_refused(copy):
    experiment = Experiment(copy)
    run = RunDir(copy / experiment.selected)
    for path, use in ((run.scores_val, experiment.scores), (run.metrics, experiment.curves)):
        body = path.read_bytes()
        path.write_bytes(body[:-2] + b"0\n")
        with pytest.raises(CheckpointError, match=f"{path.name}: does not match its digest"):
            use()
        path.write_bytes(body)
    table = ExperimentDir(copy).leaderboard
    table.write_text(table.read_text().replace("0.", "1.", 1))
    for use in (lambda: experiment.leaderboard, lambda: repr(experiment), experiment._repr_html_):
        with pytest.raises(
            CheckpointError, match=r"leaderboard.csv: is missing, damaged or edited; `make evaluate"
        ):
            use()


def test_a_frame_has_the_rows_and_says_what_it_needs(finished, monkeypatch):
    experiment = Experiment(finished)
    monkeypatch.setattr("pipeline.results.find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="pip install pandas"):
        experiment.leaderboard_frame()
    monkeypatch.undo()
    pandas = types.ModuleType("pandas")
    pandas.__spec__ = types.SimpleNamespace()
    pandas.DataFrame = lambda rows: ("frame", rows)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert experiment.leaderboard_frame() == ("frame", experiment.leaderboard)


def test_reading_imports_no_torch_and_writes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    code = (
        "import sys; from pipeline.results import Experiment; e = Experiment(sys.argv[1]);"
        "repr(e), e._repr_html_(), e.leaderboard, e.seeds, e.comparisons, e.curves(), e.scores();"
        "e.settings(), e.report();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, finished], check=True, env=clean_environment(), cwd=ROOT)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def run_cell(source, names):
    """What a notebook shows of a cell: what it prints, then its last expression."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        value = None if last is None else eval(compile(last, "<cell>", "eval"), names)
    as_html = getattr(value, "_repr_html_", None)
    return printed.getvalue() + (as_html() if as_html else "" if value is None else repr(value))


def test_the_shipped_notebook_runs_from_top_to_bottom(copy, monkeypatch):
    notebook = json.loads((ROOT / "docs/experiment.ipynb").read_text())
    assert notebook["nbformat"] == 4
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "ship it without outputs"
    docs = copy.parent.parent / "docs"
    docs.mkdir()
    monkeypatch.chdir(docs)  # where a notebook of this folder runs
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    shown = [run_cell(source, names) for source in sources]
    selected = Experiment(copy).selected
    assert f"* {selected}" in shown[0]
    assert f"('{selected}', 0." in shown[1]
    assert len(names["plt"].gca().lines) == 2
    assert "circle: mean score" in shown[3]
    assert shown[4].startswith("<iframe")
    assert shown[5].startswith(f"<Predictor of {selected}")
    names["plt"].close("all")


def test_the_example_of_the_docs_runs(copy, monkeypatch):
    monkeypatch.chdir(copy.parent.parent)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/results.md").read_text(), re.S)
    (example,) = (block for block in blocks if "pipeline.results" in block)
    names = {}
    exec(example, names)
    assert names["best"]["f1_micro_lo"] <= names["best"]["f1_micro"]
    assert len(names["curves"]["epoch"]) == 2
    assert names["found"].scores.shape == names["found"].targets.shape == (48, 14)
    assert isinstance(names["model"], Predictor)
