"""Cells by several processes as they start on this machine: killed, stopped, gone on with; bad input."""

import os
import signal
import subprocess
import threading
import time

import pytest
import torch

from jobs.local.processes import Job, Process
from jobs.local.ranks import Ranks
from jobs.local.slots import Slots
from jobs.local.train_groups import plan_processes
from jobs.stages import EXIT_RANK_LOST, EXIT_STOPPED
from pipeline.distributed.meeting import join
from pipeline.errors import LaunchError, LostRankError, SpecError, TrainingError
from pipeline.evaluation.mixed_hardware import mixed_hardware
from pipeline.models.checkpoint import load_checkpoint
from pipeline.spec import RunSpec
from pipeline.spec.reading import read_spec
from pipeline.storage.files import read_json, read_json_or_empty
from pipeline.storage.jsonl import read_jsonl
from tests.cells import PATIENCE_S, epochs_of, jobs, one_cell, packed_project, paused, train, train_task
from tests.conftest import ROOT
from tests.training.test_training import OFTEN, inside

HERE = pytest.mark.xdist_group("ranks-here")  # they share the undisturbed cell
TWO = "run: {gpus_per_cell: 2, device: cpu, threads: 1}"
RECIPE = {
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    "augment": {"crop": [0.5, 1], "rotate_deg": 20},
    "precision": "fp32",
    "epochs": 4,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, drawn_zip):
    """A cell of two processes, by the verb."""
    root = tmp_path_factory.mktemp("undisturbed")
    spec = packed_project(root, drawn_zip, TWO, **RECIPE)
    status, printed = jobs("grid", spec, cwd=root)
    assert status == 0, printed
    return one_cell(spec)


def started(cell, ranks=2):
    slots = Slots(count=1, threads=1, ranks=ranks)
    process = Process(Job(cell.run.name, train_task(cell), cell.run.log), None, slots, ROOT)
    process.begin()
    return process


def ended(process, *, stopped=False):
    """(status, words); all processes are gone."""
    deadline = time.monotonic() + PATIENCE_S
    while (status := process.ranks.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.close()
    assert None not in [each.poll() for each in process.ranks.processes]
    ((_, status, words),) = process.endings(status, stopped=stopped)
    return status, words


@HERE
@pytest.mark.slow
def test_one_rank_owns_the_folder_and_the_cell_is_complete(undisturbed):
    run = undisturbed.run
    assert run.why_not_done(undisturbed.identity) is None
    assert read_json(run.provenance)["execution"]["ranks"] == 2
    assert run.log.read_text().count("epoch 4/4") == 1
    assert run.rank_log(1).exists()
    assert not run.meeting.exists()


@HERE
@pytest.mark.slow
def test_killed_in_any_rank_or_stopped_in_one_it_ends_with_the_same_bits(tmp_path, drawn_zip, undisturbed):
    cell = one_cell(packed_project(tmp_path, drawn_zip, TWO, **RECIPE), *OFTEN)
    assert cell.identity == undisturbed.identity
    steps = read_jsonl(undisturbed.run.metrics)[-1]["step"] // RECIPE["epochs"]
    for epoch, rank in enumerate((1, 0), 1):
        process = started(cell)
        with paused(cell.run.path.parent, cell.run.name, when=inside(cell, epoch, steps)):
            epoch = epochs_of(cell.run.path)
            os.kill(process.ranks.processes[rank].pid, signal.SIGKILL)
        status, words = ended(process)
        assert status == EXIT_RANK_LOST
        killed = f"process {rank} of 2: killed by SIGKILL (out of memory?)"
        assert words == f"{killed}; resumes at epoch {epoch + 1} with the same command"
        assert "the next start resumes from the last save (attempt 1 of 3)" in cell.run.log.read_text()
        assert cell.run.read_manifest()["faults"] == 1  # it has come further since the one before
    process = started(cell)
    with paused(cell.run.path.parent, cell.run.name, when=inside(cell, 3, steps)):
        os.kill(process.ranks.processes[1].pid, signal.SIGTERM)
    assert ended(process) == (EXIT_STOPPED, "paused, resumes at epoch 4")
    assert ended(started(cell)) == (0, "done")
    assert cell.run.scores_val.read_bytes() == undisturbed.run.scores_val.read_bytes()
    mine, theirs = (load_checkpoint(each.run.checkpoint_last)["model"] for each in (cell, undisturbed))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())

    # another number of processes goes on, and says so
    one = one_cell(tmp_path / "experiments" / "x.yaml", "run.gpus_per_cell=1", "train.epochs=4")
    assert one.identity == cell.identity
    for path in (cell.run.scores_val, cell.run.manifest):
        path.unlink()
    assert train(one) == 0, one.run.log.read_text()
    assert "goes on with 1 process, begun with 2 (run.gpus_per_cell)" in one.run.log.read_text()
    # the leaderboard and the page say it too
    assert mixed_hardware([one.run]).startswith(
        "cells were trained by several processes each: 2, then 1 (1 cell); what networks draw"
    )


def test_bad_numbers_are_refused_with_their_remedy(tmp_path, drawn_zip, monkeypatch):
    spec = packed_project(tmp_path, drawn_zip)
    for settings, words in {
        (
            "run.gpus_per_cell=3",
            "run.nodes_per_cell=2",
        ): "spread evenly over nodes_per_cell: 2; write a multiple",
        ("run.gpus_per_cell=17",): "train.batch_size: 16 has not a picture for each of run.gpus_per_cell: 17",
        ("run.gpus_per_cell=2", "grid.share_process=true"): "leave one of them out",
        ("run.gpus_per_cell=2", "run.compile=true"): "leave it out, or set gpus_per_cell: 1",
    }.items():
        with pytest.raises(SpecError, match=words):
            read_spec(spec, settings)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(LaunchError, match=r"run.gpus_per_cell: 4: this machine has 2; lower it, or take"):
        Slots.for_cells(1, None, None, "cuda", ranks=4)
    assert Slots.for_cells(3, None, 1, "cuda", ranks=2).places == ["0,1"]
    run = RunSpec(gpus_per_cell=2, nodes_per_cell=2)
    with pytest.raises(
        LaunchError, match=r"nodes_per_cell: 2: this machine is one node; set it to 1, or name"
    ):
        plan_processes([], run, "auto")
    with pytest.raises(TrainingError, match=r"has no number among them .*; start it with `make grid`"):
        join(2, tmp_path / "meeting.json", "cpu")


@pytest.mark.parametrize("of_node", [1, 2])
def test_those_that_wait_hear_of_one_that_was_killed_on_another_node(tmp_path, monkeypatch, of_node):
    """The one that was killed says nothing, and has no connection that closes; who started it does."""
    monkeypatch.setattr("pipeline.distributed.group.WAIT_S", 20.0)
    monkeypatch.setenv("LABELGRID_RANK", "0")
    monkeypatch.setenv("LABELGRID_MEETING", "word")
    place = tmp_path / "meeting.json"
    logs = [tmp_path / f"log-rank{i}.txt" for i in range(of_node)]
    for log in logs:
        log.touch()
    processes = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in logs]
    there = Ranks(processes, logs, (place, "word"), leads=False)

    def other_node():
        while read_json_or_empty(place).get("word") != "word":  # the first one listens
            time.sleep(0.01)
        processes[-1].kill()
        while there._has_told is False:
            there.poll()
            time.sleep(0.01)

    thread = threading.Thread(target=other_node)
    thread.start()
    with pytest.raises(LostRankError, match="killed by SIGKILL"):
        join(1 + of_node, place, "cpu")
    with pytest.raises(LostRankError, match="killed by SIGKILL"):  # one that comes later than that
        monkeypatch.setenv("LABELGRID_RANK", "1")
        join(1 + of_node, place, "cpu")
    thread.join()
    Ranks.kill(processes)
