"""Cells by four processes on two nodes of a real cluster: a whole grid, and what may happen to one of them."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.storage.files import read_json
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import RunDir
from tests.cells import is_signalled, packed_project, pid_in
from tests.slurm.conftest import SCRIPT, Lab
from tests.slurm.test_grid_on_slurm import same

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm-ranks")]

FOUR = "run: {gpus_per_cell: 4, nodes_per_cell: 2}"
SGD = {"optimizer": {"name": "sgd", "lr": 0.01}, "augment": {"crop": [0.5, 1], "rotate_deg": 10}}
EPOCHS = 24


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory, drawn_zip):
    """The disturbed cell without any disturbance, and another one, to a submission."""
    root = tmp_path_factory.mktemp("undisturbed")
    grid = f"grid: {{axes: {{train.epochs: [2, {EPOCHS}]}}}}\n{FOUR}"
    packed_project(root, drawn_zip, grid, **SGD)
    lab = Lab(root, cluster)
    printed = lab.ok("submission")
    lab.settle()
    return lab, printed


def rank_process(lab, rank):
    """The pid of a process that trains for this project."""
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if f"LABELGRID_RANK={rank}\0".encode() in environment and str(lab.root).encode() in environment:
            return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


def test_a_grid_of_cells_over_two_nodes_comes_to_its_submission(undisturbed):
    lab, printed = undisturbed
    rows = [row for row in lab.leaderboard().values() if row["state"] == "done"]
    assert len(rows) == 2, lab.tails()
    assert len(lab.experiment.submission.read_text().splitlines()) == 41
    for cell in lab.cells():
        assert read_json(RunDir(cell).provenance)["execution"]["ranks"] == 4
        assert {path.name for path in cell.glob("log-rank*.txt")} == {f"log-rank{i}.txt" for i in (1, 2, 3)}
    job = lab.job_of(lab.cells()[0])
    given = lab.slurm("sacct", "-X", "-n", "-P", "-j", job, "-o", "NNodes,AllocTRES").strip()
    assert given.startswith("2|")
    assert "gres/gpu=4," in given + ","
    assert re.search(r"queued train-1: \d+ \(2 cells in 2 jobs\)", printed)


def test_warned_a_rank_killed_and_a_node_lost_it_ends_as_undisturbed(lab, undisturbed, cluster):
    one = lab(FOUR, epochs=EPOCHS, **SGD)
    one.ok("grid")
    (cell,) = one.until(one.cells)
    one.until(lambda: one.epochs(cell) >= 2)
    job = one.job_of(cell)

    one.slurm("scancel", "--signal=USR2", job)  # as before the time limit
    one.until(lambda: "saved" in (cell / "log.txt").read_text())
    one.until(lambda: restarts(one, job) == 1)

    epochs = one.epochs(cell)
    one.until(lambda: one.epochs(cell) > epochs)
    os.kill(rank_process(one, 3), signal.SIGKILL)
    one.until(lambda: restarts(one, job) == 2)
    assert "another process of this cell ended" in (cell / "log.txt").read_text()

    epochs = one.epochs(cell)
    one.until(lambda: one.epochs(cell) > epochs)
    assert epochs < EPOCHS - 2, "it was too fast: this shows nothing"
    node = "r01g02"
    tool = [str(SCRIPT), "node-fail", node, cluster["CLUSTER_FOLDER"]]
    subprocess.run(tool, check=True, capture_output=True)
    try:
        one.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    finally:
        tool[1] = "node-start"
        subprocess.run(tool, check=True, capture_output=True)
    one.settle()
    straight, _ = undisturbed
    (other,) = (path for path in straight.cells() if straight.epochs(path) == EPOCHS)
    assert one.state(cell) == "done", one.tails()
    assert same(one, cell, straight, other)
    rows = [row["epoch"] for row in read_jsonl(cell / "metrics.jsonl") if "validation/loss" in row]
    assert rows == list(range(1, EPOCHS + 1))


def test_at_its_time_limit_a_continuation_over_as_many_nodes_goes_on(lab, undisturbed):
    """Slurm's own warning before a real limit, where requeueing is forbidden."""
    timed = lab(FOUR, epochs=EPOCHS, **SGD)
    limits = ("cluster.train.time_min=30", "cluster.signal_s=20")
    timed.ok("grid", "cluster.requeue=false", "cluster.continuations=1", *limits)
    with timed.paused() as (cell,):
        more, pid = timed.job_of(cell), pid_in(cell)
        running = {line.split("|")[0] for line in timed.queue() if "|RUNNING|" in line}
        (first,) = running & {*timed.mine()}
        timed.slurm("scontrol", "update", f"JobId={first}", "TimeLimit=1")
        timed.until(lambda: is_signalled(pid))  # at least half a minute: Slurm counts limits in minutes
    timed.settle()
    straight, _ = undisturbed
    (other,) = (path for path in straight.cells() if straight.epochs(path) == EPOCHS)
    assert timed.state(cell) == "done", timed.tails()
    assert same(timed, cell, straight, other)
    assert first != more
    log = timed.experiment.slurm / f"{first}_0_log.out"  # of the first node
    assert "stopped; the continuation job goes on" in log.read_text()
    given = timed.slurm("sacct", "-X", "-n", "-P", "-j", more, "-o", "NNodes,State").strip()
    assert given == "2|COMPLETED"


def restarts(lab, job):
    """How often the job has begun again."""
    shown = lab.slurm("scontrol", "show", "job", job)
    found = re.search(r"Restarts=(\d+)", shown)
    return int(found[1]) if found else -1
