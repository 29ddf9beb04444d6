"""Cells in one process on one stream of batches: each exactly as if alone, also killed, also beside a failing one."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.local.train_groups import group_tasks, plan_processes
from jobs.planning.plan import make_plan
from jobs.planning.tasks import train_task
from jobs.stages import EXIT_FAILED, EXIT_STOPPED, TrainGroupTask, TrainTask, encode
from pipeline.models.checkpoint import load_checkpoint
from pipeline.spec import RunSpec, Spec
from pipeline.spec.reading import read_spec
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import RunDir
from tests.cells import clean_environment, finish, jobs, packed_project, paused, run_here, saved_step
from tests.conftest import ROOT

# different networks (one with dropout), optimizers, schedules and lengths; one stream of batches
GRID = """
grid:
  cells:
    - {train.model.name: cnn2, train.optimizer: {name: sgd, lr: 0.01}}
    - {train.model.name: mobilenet_v3_small, train.optimizer: {name: adamw, lr: 1e-3}, train.schedule: {name: cosine}}
    - {train.model.name: cnn3, train.optimizer: {name: rmsprop, lr: 1e-3}, train.epochs: 2}
run: {threads: 1, save_every_min: 1e-9, save_fraction: 1000}
"""
SHARED = pytest.mark.xdist_group("train-groups")  # one worker makes `alone`
TRAIN = {"augment": {"hflip": 0.5, "crop": [0.5, 1], "rotate_deg": 20}, "epochs": 3, "precision": "fp32"}


def planned(tmp_path, drawn_zip, text=GRID, **train):
    spec = packed_project(tmp_path, drawn_zip, text, **(TRAIN | train))
    plan = make_plan(read_spec(spec))
    return plan, [train_task(plan, cell) for cell in plan.cells]


def start(task):
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.stages"],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env={**clean_environment(), "OMP_NUM_THREADS": "1"},
    )
    process.stdin.write(encode(task).encode())
    process.stdin.flush()
    return process


def results(plan):
    return {
        cell.cell.spec.train.model.name: (
            load_checkpoint(cell.run.checkpoint_last)["model"],
            cell.run.scores_val.read_bytes(),
            [{k: v for k, v in row.items() if "per_s" not in k} for row in read_jsonl(cell.run.metrics)],
        )
        for cell in plan.cells
    }


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, (weights, scores, rows) in expected.items():
        assert all(torch.equal(value, found[name][0][key]) for key, value in weights.items()), name
        assert found[name][1] == scores, name
        assert found[name][2] == rows, name


@pytest.fixture(scope="session")
def alone(tmp_path_factory, drawn_zip):
    plan, tasks = planned(tmp_path_factory.mktemp("alone"), drawn_zip)
    for task in tasks:
        assert run_here(task) == 0
    return results(plan)


@pytest.mark.slow
@SHARED
def test_together_gives_the_bits_each_cell_has_alone_and_each_its_own_files(tmp_path, drawn_zip, alone):
    plan, tasks = planned(tmp_path, drawn_zip)
    assert len({task.stream for task in tasks}) == 1
    assert run_here(TrainGroupTask(tuple(tasks))) == 0
    assert_equal(results(plan), alone)
    for cell in plan.cells:
        assert cell.run.why_not_done(cell.identity) is None
        epochs = [line for line in cell.run.log.read_text().splitlines() if line.startswith("epoch ")]
        assert len(epochs) == cell.cell.spec.train.epochs
        assert any(cell.run.path.glob("events.out.tfevents.*"))
        assert json.loads(cell.run.provenance.read_text())["identity"] == cell.identity


@pytest.mark.slow
@SHARED
def test_killed_at_different_steps_they_catch_up_and_end_with_the_same_bits(tmp_path, drawn_zip, alone):
    plan, tasks = planned(tmp_path, drawn_zip)
    group = TrainGroupTask(tuple(tasks))
    # one goes ahead alone
    assert stopped(tasks[1], plan.cells[1], range(5, 36), signal.SIGTERM) == EXIT_STOPPED
    assert stopped(group, plan.cells[0], range(4, 24), signal.SIGKILL) == -signal.SIGKILL
    assert stopped(group, plan.cells[0], range(14, 36), signal.SIGTERM) == EXIT_STOPPED
    assert run_here(TrainGroupTask(tuple(tasks))) == 0
    assert_equal(results(plan), alone)


def stopped(task, cell, steps, number):
    """The exit status of a process that is sent a signal when the cell has been saved at one of these steps."""

    process = start(task)
    with paused(
        cell.run.path.parent, cell.run.name, when=lambda folder: saved_step(folder, cell.identity) in steps
    ):
        process.send_signal(number)
    return finish(process)


@pytest.mark.slow
@SHARED
def test_a_diverging_cell_drops_out_and_leaves_no_trace_in_the_others(tmp_path, drawn_zip, alone):
    bad = "    - {train.model.name: cnn2, train.optimizer: {name: sgd, lr: 1e30}}\nrun:"
    plan, tasks = planned(tmp_path, drawn_zip, GRID.replace("run:", bad))
    assert finish(start(TrainGroupTask(tuple(tasks)))) == EXIT_FAILED
    diverged = plan.cells.pop()
    assert_equal(results(plan), alone)
    assert diverged.run.read_manifest()["state"] == "diverged"
    assert "error: " in diverged.run.log.read_text()
    assert all("error: " not in cell.run.log.read_text() for cell in plan.cells)


@pytest.mark.slow
def test_make_grid_trains_together_by_itself_and_says_how_each_ended(tmp_path, drawn_zip):
    text = GRID.replace("lr: 0.01}", "lr: 1e30}").replace("threads: 1, ", "parallel: 1, ")
    plan, _ = planned(tmp_path, drawn_zip, text, epochs=1)
    status, printed = jobs("grid", plan.loaded.path, cwd=tmp_path)
    assert status == 1
    assert "train: 3 cells in 1 process, 1 at once" in printed
    assert "ok   2/3" in printed or "ok   3/3" in printed
    assert "FAIL" in printed
    states = [cell.run.read_manifest()["state"] for cell in plan.cells]
    assert states == ["diverged", "done", "done"]
    leaderboard = (plan.experiment.leaderboard).read_text()
    assert sum(line.split(",")[1:2] == ["done"] or ",done," in line for line in leaderboard.splitlines()) == 2


def test_only_cells_with_the_very_same_batches_share_them(tmp_path, drawn_zip):
    adams = "[{name: adam, lr: 1e-3}, {name: adam, lr: 1e-4}]"
    text = f"grid: {{axes: {{train.batch_size: [8, 16], train.optimizer: {adams}}}, seeds: [0, 1]}}\n"
    plan, tasks = planned(tmp_path, drawn_zip, text)
    assert len(tasks) == 8
    groups = group_tasks(tasks, 8)
    assert [len(group) for group in groups] == [2, 2, 2, 2]
    for group in groups:
        specs = [task.spec.train for task in group]
        assert len({(spec.batch_size, spec.seed) for spec in specs}) == 1
        assert len({spec.optimizer.lr for spec in specs}) == 2
    alone = make_plan(read_spec(plan.loaded.path, ["grid.share_process=false"]))
    assert {train_task(alone, cell).stream for cell in alone.cells} == {""}


@pytest.mark.parametrize(
    ("cores", "run", "choice", "features", "processes", "at_once", "threads"),
    [
        (2, {}, "auto", False, 2, 2, 1),  # few cores: no thread waits for another
        (2, {}, "auto", True, 1, 1, 2),  # one computes the features with all of them
        (64, {}, "auto", False, 7, 7, 9),  # enough for each
        (8, {}, "auto", False, 4, 4, 2),
        (16, {}, "auto", False, 4, 4, 4),
        (16, {}, "auto", True, 4, 4, 4),
        (64, {}, True, False, 1, 1, 64),
        (2, {"parallel": 1}, "auto", False, 1, 1, 2),
        (2, {"threads": 1}, "auto", False, 2, 2, 1),
    ],
)
def test_where_sharing_pays(monkeypatch, cores, run, choice, features, processes, at_once, threads):
    monkeypatch.setattr("jobs.local.train_groups.cores", lambda: cores)
    monkeypatch.setattr("jobs.local.slots.cores", lambda: cores)
    spec, path = Spec.model_validate({"name": "x", "data": {"source": "d.zip"}}), Path("p")
    runs = [RunDir(Path(f"r{i}")) for i in range(7)]
    tasks = [TrainTask(run, spec, run.name, path, path, path, stream="x") for run in runs]
    groups, slots = plan_processes(tasks, RunSpec(device="cpu", **run), choice, features=features)
    assert (len(groups), slots.count, slots.threads) == (processes, at_once, threads)
    assert [task for group in groups for task in group] == tasks
