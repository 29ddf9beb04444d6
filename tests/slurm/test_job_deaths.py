"""Jobs that end before their cells train: the reason reaches manifest, leaderboard and status. Without a cluster."""

import csv
import os

import pytest

from jobs.clusters.profile import load_profile
from jobs.planning.plan import make_plan
from jobs.planning.status import CellStatus, GridStatus
from jobs.planning.tasks import wrangle_task
from jobs.slurm.batches import build_batches
from jobs.slurm.job import CellsFailedError
from jobs.slurm.records import this_user
from jobs.slurm.status import read_grid_status
from pipeline.spec.reading import read_spec
from pipeline.storage.jsonl import with_checksum
from tests.cells import project

GRID = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.1}]}}\nrun: {device: cpu}"


def tasks_of(plan, *settings):
    """The tasks of the arrays, and the final job's."""
    grid_status = GridStatus([CellStatus(cell, "pending") for cell in plan.cells])
    profile = load_profile("slurm", settings)
    *_, train, final = build_batches(plan, profile, grid_status, max_array=10, submission=False)
    return train.tasks, final.tasks[0]


@pytest.mark.parametrize("cells_per_job", [1, 2])
def test_cells_whose_imports_fail_in_a_job_say_so(tmp_path, drawn_zip, monkeypatch, cells_per_job):
    plan = make_plan(read_spec(project(tmp_path, drawn_zip, GRID)))
    jobs, _ = tasks_of(plan, f"cluster.cells_per_job={cells_per_job}", "cluster.train.cpus=1")
    assert len(jobs) == 2 // cells_per_job
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text("raise ImportError('no libcudart')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    for job in jobs:
        with pytest.raises(CellsFailedError, match=f"{cells_per_job} of {cells_per_job} cells"):
            job()
    for cell in plan.cells:
        assert "ImportError: no libcudart (exit status 1; see " in cell.run.why_not_done(cell.identity)


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """A maker of squeue and sacct that answer as Slurm would: there is no cluster to ask here."""

    def make(accounted):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in (("squeue", ""), ("sacct", accounted), ("scontrol", "ClusterName = here\n")):
            (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    return make


def test_a_job_that_fails_at_its_start_is_explained_by_slurm_and_its_log(tmp_path, drawn_zip, slurm_says):
    plan = make_plan(read_spec(project(tmp_path, drawn_zip, GRID)))
    assert wrangle_task(plan, plan.datasets[0])() == 0
    _, final = tasks_of(plan)
    adam, sgd = plan.cells
    folder = plan.experiment.slurm
    folder.mkdir(parents=True)
    proof = {
        "cluster": "here",
        "name": "labelgrid-x-train-1-abc123",
        "user": this_user(),
        "folder": str(folder),
    }
    end = f"here|{proof['name']}|{folder}\n"
    user = proof["user"]
    slurm_says(
        f"7_0|{user}|FAILED|None|3|n1|1:0|{end}7_1|{user}|NODE_FAIL|None|30|n1|0:0|{end}"
        # a stranger's job of the same number, later: neither is believed
        f"7_0|{user}|COMPLETED|None|3|n1|0:0|there|{proof['name']}|{folder}\n7_1|eve|RUNNING|None|3|n1|0:0|{end}"
    )
    said = "ModuleNotFoundError: No module named 'submitit'\nsrun: error: node1: task 0: Exited with exit code 1\n"
    (folder / "7_0_0_log.out").write_text(f"Traceback (most recent call last):\n{said}")
    events = [
        {"event": "submitted", "cell": cell.run.name, "identity": cell.identity, "jobs": [f"7_{i}"]}
        | {"proof": proof}
        for i, cell in enumerate(plan.cells)
    ]
    plan.experiment.ledger.write_text("".join(with_checksum(event) + "\n" for event in events))
    expected = {
        adam.run.name: "ended with status 1:0: ModuleNotFoundError: No module named 'submitit' "
        "(see slurm/7_0_0_log.out)",
        sgd.run.name: "its node failed",
    }
    status = read_grid_status(plan, {})  # before the final job ran
    assert {cell.planned.run.name: cell.why for cell in status.cells} == expected
    final()
    with plan.experiment.leaderboard.open(newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file) if row["state"] != "baseline"}
    assert {name: row["error"] for name, row in rows.items()} == expected
    assert {row["state"] for row in rows.values()} == {"failed"}
    for cell in plan.cells:
        assert cell.run.why_not_done(cell.identity) == f"failed: {expected[cell.run.name]}"
    status = read_grid_status(make_plan(plan.loaded), {})
    assert {cell.kind for cell in status.cells} == {"pending"}  # the next grid tries again
    assert {cell.planned.run.name: cell.why for cell in status.cells} == {
        name: f"failed: {why}" for name, why in expected.items()
    }
