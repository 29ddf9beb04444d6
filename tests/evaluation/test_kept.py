"""A cell is measured once: what is kept is read where it fits, and never where it does not."""

import shutil
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation import cell as cell_module
from pipeline.evaluation import experiment as experiment_module
from pipeline.evaluation import measuring
from pipeline.evaluation.cell import evaluate_cell
from pipeline.evaluation.experiment import evaluate_experiment
from pipeline.evaluation.kept import kept, key_of
from pipeline.evaluation.leaderboard import read_leaderboard
from pipeline.evaluation.selection import FORMAT, EvaluationInputs, Selection
from pipeline.metrics.bootstrap import bootstrap
from pipeline.metrics.decision_rule import mean_scores
from pipeline.metrics.multilabel import all_metrics
from pipeline.spec import EvaluateSpec, SubmissionSpec, TopCells
from pipeline.storage.run_dir import ExperimentDir, RunDir
from tests.evaluation.test_evaluation import finished_cell

CELLS = [("good-aaaaaaaa", "a" * 12), ("poor-bbbbbbbb", "b" * 12), ("fair-cccccccc", "c" * 12)]
TABLES = ("leaderboard.csv", "comparisons.csv", "selected.json", "baselines.json")


@pytest.fixture
def experiment(tmp_path, drawn):
    experiment = ExperimentDir(tmp_path / "experiments" / "x")
    for seed, ((name, identity), noise) in enumerate(zip(CELLS, (0.5, 0.9, 0.7), strict=True)):
        finished_cell(experiment, drawn, name[:4], identity, noise, seed, optimizer={"name": "adam"})
    return experiment


@pytest.fixture
def measured(monkeypatch):
    """The names of what is measured, as it is measured."""
    names = []

    def note(module, name):
        real = getattr(module, name)

        def counted(run, *rest):
            names.append(getattr(run, "name", "baselines"))
            return real(run, *rest)

        monkeypatch.setattr(module, name, counted)

    note(cell_module, "measure")
    note(experiment_module, "measure")
    note(experiment_module, "baselines")
    return names


def evaluate(experiment, drawn, cells=CELLS, *, others=(), top=None, **settings):
    submission = SubmissionSpec(cells=TopCells(top=top)) if top else SubmissionSpec()
    inputs = EvaluationInputs(
        experiment,
        tuple(cells),
        EvaluateSpec(**settings),
        submission,
        ("data",),
        tuple(others),
        "x.yaml",
    )
    evaluate_experiment(inputs, monitor="f1_micro", sets=[drawn[1:]], reasons={})


def found(experiment):
    """Every byte that an evaluation writes."""
    names = [*TABLES, *(f"{name}/{file}" for name, _ in CELLS for file in ("report.json", "evaluation.npz"))]
    return {name: (experiment.path / name).read_bytes() for name in names}


def test_what_is_measured_is_measured_once(experiment, drawn, measured):
    evaluate(experiment, drawn, CELLS[:2], top=2)
    assert measured == ["good-aaaaaaaa", "poor-bbbbbbbb", "baselines", "ensemble"]
    before = {name: (experiment.path / name).read_bytes() for name in TABLES}
    measured.clear()
    evaluate(experiment, drawn, CELLS[:2], top=2)
    assert measured == []
    assert {name: (experiment.path / name).read_bytes() for name in TABLES} == before
    evaluate(experiment, drawn, CELLS[1:2], others=CELLS[:1], top=2)  # of another SET
    assert measured == []
    evaluate(experiment, drawn, top=2)
    assert measured == ["fair-cccccccc", "ensemble"]  # which has another second member now
    assert Selection.read(experiment).ensemble == ("good-aaaaaaaa", "fair-cccccccc")


def test_other_scores_are_measured_and_no_other_cell(experiment, drawn, measured):
    evaluate(experiment, drawn)
    before = found(experiment)
    shutil.rmtree(experiment.path / "fair-cccccccc")
    finished_cell(experiment, drawn, "fair", "c" * 12, 0.2, 7, optimizer={"name": "adam"})
    measured.clear()
    evaluate(experiment, drawn)
    assert measured == ["fair-cccccccc"]
    now = found(experiment)
    assert now["fair-cccccccc/report.json"] != before["fair-cccccccc/report.json"]
    assert now["good-aaaaaaaa/report.json"] == before["good-aaaaaaaa/report.json"]
    assert read_leaderboard(experiment.leaderboard)[0]["cell"] == "fair-cccccccc"


def test_another_spec_of_a_cell_is_read_again(experiment, drawn, measured):
    """What the leaderboard says of its settings is kept too."""
    evaluate(experiment, drawn)
    run = experiment.find("fair")
    run.spec.write_text(run.spec.read_text().replace('"adam"', '"adamw"'))
    run.write_manifest("c" * 12, "done")
    evaluate(experiment, drawn)
    assert measured.count("fair-cccccccc") == 2
    rows = {row["cell"]: row for row in read_leaderboard(experiment.leaderboard)}
    assert rows["fair-cccccccc"]["set/train.optimizer.name"] == "adamw"


@pytest.mark.parametrize(
    ("first", "then", "anew"),
    [
        ({}, {"threshold": 0.4}, 3),
        ({}, {"calibrate": "platt"}, 3),
        ({}, {"select_by": "map_macro"}, 0),
        ({"threshold": "per_label", "tune_for": "f1_macro"}, {"select_by": "f1_macro"}, 0),
        ({"threshold": "per_label"}, {"select_by": "f1_macro"}, 3),  # thresholds are tuned for it
    ],
)
def test_another_rule_measures_all_and_another_ranking_none(experiment, drawn, measured, first, then, anew):
    evaluate(experiment, drawn, **first)
    measured.clear()
    evaluate(experiment, drawn, **first | then)
    assert len(measured) == anew
    after = found(experiment)
    for name, _ in CELLS:
        (experiment.path / name / "evaluation.npz").unlink()
    evaluate(experiment, drawn, **first | then)
    assert found(experiment) == after


def cut(body):
    return body[: len(body) // 2]


def flipped(body):
    return body[:300] + bytes([body[300] ^ 1]) + body[301:]


@pytest.mark.parametrize("file", ["evaluation.npz", "report.json"])
@pytest.mark.parametrize("damage", [cut, flipped, lambda body: b"", None])
def test_a_damaged_one_is_measured_again_and_no_other_cell(experiment, drawn, measured, file, damage):
    evaluate(experiment, drawn)
    before = found(experiment)
    path = experiment.path / "poor-bbbbbbbb" / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    measured.clear()
    evaluate(experiment, drawn)
    assert measured == ["poor-bbbbbbbb"]
    assert found(experiment) == before


def test_no_flipped_bit_of_what_is_kept_is_believed(experiment):
    run = RunDir(experiment.path / "good-aaaaaaaa")
    evaluate_cell(run, EvaluateSpec())
    key = key_of(EvaluateSpec(), run.digests_of(run.scores_val, run.spec))
    whole = kept(run, key, "f1_micro")
    body = run.evaluation.read_bytes()
    read = []
    # the facts, arrays here and there, and the zip's directory
    for at in (
        *range(0, 3000, 7),
        *range(3000, len(body) - 2500, 997),
        *range(len(body) - 2500, len(body), 3),
    ):
        run.evaluation.write_bytes(body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :])
        cell = kept(run, key, "f1_micro")
        read.append(cell is not None)
        if cell is not None:  # a flip in another metric's resamples, or in a date of the directory
            assert (cell.row, cell.images, cell.spec) == (whole.row, whole.images, whole.spec), at
            assert cell.resampled_R.tobytes() == whole.resampled_R.tobytes(), at
    assert len(read) - sum(read) > 400


def test_damaged_baselines_are_measured_again(experiment, drawn, measured):
    evaluate(experiment, drawn)
    before = experiment.baselines.read_bytes()
    experiment.baselines.write_bytes(flipped(before))
    measured.clear()
    evaluate(experiment, drawn)
    assert measured == ["baselines"]
    assert experiment.baselines.read_bytes() == before


@pytest.mark.slow
def test_processes_find_the_same_bytes_and_a_damaged_cell_is_its_row(experiment, drawn, monkeypatch):
    path = experiment.path / "poor-bbbbbbbb" / "scores_val.npz"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole))
    evaluate(experiment, drawn)
    one_after_the_other = experiment.leaderboard.read_bytes()
    assert b"does not match its digest" in one_after_the_other
    path.write_bytes(whole)
    evaluate(experiment, drawn)
    straight = found(experiment)
    for file in experiment.path.glob("*/evaluation.npz"):
        file.unlink()
    monkeypatch.setattr(measuring, "_FEW", 1)
    monkeypatch.setattr(measuring, "cores", lambda: 2)
    started = []
    real = measuring.in_processes
    monkeypatch.setattr(measuring, "in_processes", lambda *a: started.append(a[2]) or real(*a))
    path.write_bytes(flipped(whole))
    evaluate(experiment, drawn)
    assert started == [2]
    assert experiment.leaderboard.read_bytes() == one_after_the_other
    path.write_bytes(whole)
    for file in experiment.path.glob("*/evaluation.npz"):
        file.unlink()
    evaluate(experiment, drawn)
    assert found(experiment) == straight


def test_a_process_that_dies_is_said_with_what_helps(experiment, drawn, monkeypatch):
    def dying(*_):
        raise BrokenProcessPool
        yield

    monkeypatch.setattr(measuring, "_workers", lambda sizes: 2)
    monkeypatch.setattr(measuring, "in_processes", dying)
    with pytest.raises(
        PipelineError, match=r"experiments/x: a process .* died, probably out of memory; give"
    ):
        evaluate(experiment, drawn)


def test_there_are_as_many_processes_as_cores_work_and_memory_allow(monkeypatch):
    monkeypatch.setattr(measuring, "cores", lambda: 8)
    monkeypatch.setattr(measuring, "memory_available", lambda: 10 << 30)
    assert measuring._workers([]) == 1
    assert measuring._workers([100_000] * 3) == 1  # measured sooner than processes start
    assert measuring._workers([2 << 20] * 3) == 3
    assert measuring._workers([2 << 20] * 1000) == 8
    assert measuring._workers([100 << 20] * 1000) == 2
    assert measuring._workers([500 << 20] * 1000) <= 1


def test_a_kept_measurement_belongs_to_one_rule_and_scores():
    rule = EvaluateSpec()
    keys = {
        key_of(rule, ["a"]), key_of(rule, ["b"]), key_of(rule, ["a", "b"]),
        key_of(EvaluateSpec(threshold=0.4), ["a"]), key_of(EvaluateSpec(threshold="per_label"), ["a"]),
    }  # fmt: skip
    assert len(keys) == 5
    assert key_of(EvaluateSpec(select_by="map_macro"), ["a"]) == key_of(rule, ["a"])


def test_measurements_change_only_with_the_format():
    """Cells that were measured before would be compared with others that are measured otherwise."""
    rng = np.random.default_rng(0)
    targets_NK = (rng.random((60, 5)) < 0.3).astype(np.uint8)
    scores_NK = np.clip(0.4 * targets_NK + 0.7 * rng.random((60, 5)), 0, 1).astype(np.float32)
    decisions_NK = (scores_NK >= 0.5).astype(np.uint8)
    values = all_metrics(scores_NK, decisions_NK, targets_NK)
    resampled = bootstrap(scores_NK, decisions_NK, targets_NK)
    said = (
        "a metric or its resamples have changed: raise FORMAT of pipeline/evaluation/selection.py, then this"
    )
    assert (FORMAT, round(sum(values.values()), 6)) == (3, 12.544033), said
    assert round(float(sum(r.std() for r in resampled.values())), 6) == 0.73079, said


@pytest.mark.parametrize("shape", [(5, 3), (1, 14), (300, 1), (257, 40)])
@pytest.mark.parametrize("cells", [1, 2, 3, 19, 130])
def test_a_mean_of_scores_held_one_at_a_time_is_the_mean_to_the_bit(shape, cells):
    rng = np.random.default_rng(cells)
    several = [rng.random(shape, np.float32) for _ in range(cells)]
    mean_NK = mean_scores(iter(several))
    assert mean_NK.dtype == np.float32
    assert mean_NK.tobytes() == np.mean(several, axis=0, dtype=np.float64).astype(np.float32).tobytes()
