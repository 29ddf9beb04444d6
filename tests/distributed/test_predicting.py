"""The test set predicted by several processes: the bits of one, and what is left where one of them is lost."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.commands.stage import run_stage
from jobs.local.processes import Job, Process
from jobs.local.slots import Slots
from jobs.planning.plan import make_plan
from jobs.planning.tasks import evaluate_task, predict_task, submission_task
from jobs.slurm.job import FinalJob
from jobs.stages import EXIT_RANK_LOST, PredictTask
from pipeline.data.drawn import draw
from pipeline.spec.reading import read_spec
from pipeline.storage.run_dir import RunDir
from tests.cells import PATIENCE_S, jobs, packed_project
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks-predict")]  # they share a trained cell

ONE = "run: {device: cpu, threads: 1}"
TWO = "run.gpus_per_cell=2"


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, drawn_zip):
    """(spec, cell, bytes of its test scores) of a cell that one process has predicted: three batches of pictures."""
    root = tmp_path_factory.mktemp("predicted")
    new = draw(root / "new", images=240, test_images=300, size_px=32)
    spec = packed_project(root, SimpleNamespace(train=drawn_zip.train, test=new.test), ONE, epochs=1)
    status, printed = jobs("submission", spec, cwd=root)
    assert status == 0, printed
    (cell,) = make_plan(read_spec(spec)).cells
    return spec, cell.run, cell.run.scores_test.read_bytes()


@pytest.fixture
def missing(predicted):
    """(plan for two processes, task, cell) where the prediction is not there."""
    spec, run, _ = predicted
    run.scores_test.unlink(missing_ok=True)
    plan = make_plan(read_spec(spec, [TWO]))
    return plan, predict_task(plan, {run: plan.tests[run.name]}), run


def test_two_processes_predict_the_bits_of_one(predicted, missing):
    spec, run, alone = predicted
    plan, _, _ = missing
    log = plan.experiment.logs / "predict-rank1.txt"
    log.unlink(missing_ok=True)
    submitted = plan.experiment.submission.read_bytes()
    status, printed = jobs("submission", spec, "--set", TWO, cwd=spec.parents[1])
    assert status == 0, printed
    assert log.exists()  # there were two
    assert run.scores_test.read_bytes() == alone
    assert len(np.load(run.scores_test)["ids"]) == 300
    assert plan.experiment.submission.read_bytes() == submitted
    assert not plan.experiment.meeting.exists()


def killed(task, rank):
    """(exit status, words) of a prediction by two processes one of which is killed once both have come."""
    slots = Slots(count=1, threads=1, ranks=2)
    log = task.experiment.logs / "predict.txt"
    log.unlink(missing_ok=True)
    process = Process(
        Job("predict", PredictTask(task.experiment, task.tests, "cpu", 2), log), None, slots, ROOT
    )
    process.begin()
    deadline = time.monotonic() + PATIENCE_S
    for here in (True, False):  # the first one listens; then all have come
        while task.experiment.meeting.exists() is not here and process.ranks.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
    os.kill(process.ranks.processes[rank].pid, signal.SIGKILL)
    while (status := process.ranks.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.close()
    ((_, status, words),) = process.endings(status, stopped=False)
    return status, words


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_lost_leaves_no_half_file_and_is_named(predicted, missing, rank, monkeypatch):
    monkeypatch.setattr(
        "jobs.local.ranks.LOST_S", 1.0
    )  # one that waits at a meeting does not notice by itself
    _, task, run = missing
    before = {path.name for path in run.path.iterdir()}
    for _ in range(10):  # one that had come to its end before it was killed shows nothing
        status, words = killed(task, rank)
        if not run.scores_test.exists():
            break
        assert run.scores_test.read_bytes() == predicted[2]
        run.scores_test.unlink()
    assert status == EXIT_RANK_LOST
    assert words == f"process {rank} of 2: killed by SIGKILL (out of memory?)"
    assert {path.name for path in run.path.iterdir()} == before


def test_what_is_wrong_with_one_process_is_the_error_of_the_verb(predicted, missing, capsys):
    plan, task, run = missing
    best = run.checkpoint_best.read_bytes()
    try:
        run.checkpoint_best.write_bytes(best[:-1])
        assert run_stage(plan, "predict it", task, ranks=2) != 0
    finally:
        run.checkpoint_best.write_bytes(best)
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert f"{RunDir(run.path).checkpoint_best.name}" in said
    assert not run.scores_test.exists()


def test_the_job_of_a_submission_predicts_what_is_missing_by_its_processes(predicted, missing):
    plan, task, run = missing
    submission = submission_task(plan)
    assert submission.prediction() == task
    log = plan.experiment.logs / "predict-rank1.txt"
    log.unlink(missing_ok=True)
    FinalJob(evaluate_task(plan), submission, ranks=2)._predict(submission)
    assert run.scores_test.read_bytes() == predicted[2]
    assert log.exists()
    assert submission.prediction() is None
