"""However a training process dies before its first step, its reason is in the manifest, the leaderboard and status."""

import csv
import json
import os
import signal
import sys
import threading

import pytest

from jobs.local import processes
from jobs.local.endings import last_error, record_failure
from jobs.local.processes import Job, run_jobs
from jobs.local.progress import Progress
from jobs.local.slots import Slots
from jobs.local.train_groups import group_process
from jobs.planning.plan import make_plan
from jobs.planning.tasks import train_task, wrangle_task
from jobs.stages import EXIT_STOPPED
from pipeline.spec.reading import read_spec
from tests.cells import jobs, project
from tests.conftest import ROOT

GRID = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.1}]}}\nrun: {threads: 1}"


def broken_package(folder, name, code):
    """A package that children find before the installed one, and that runs `code` when it is imported."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code + "\n")
    return str(folder)


def import_fails(tmp_path, monkeypatch):
    code = "raise ImportError('libcudart.so.12: cannot open shared object file')"
    monkeypatch.setenv("PYTHONPATH", broken_package(tmp_path / "broken", "torch", code))
    return (
        r"ImportError: libcudart.so.12: cannot open shared object file (exit status 1; see {first}/log.txt)"
    )


def package_is_missing(tmp_path, monkeypatch):
    code = "raise ModuleNotFoundError(\"No module named 'pydantic'\")"
    monkeypatch.setenv("PYTHONPATH", broken_package(tmp_path / "broken", "pydantic", code))
    return "ModuleNotFoundError: No module named 'pydantic' (exit status 1; see {first}/log.txt)"


def killed_while_importing(tmp_path, monkeypatch):
    code = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setenv("PYTHONPATH", broken_package(tmp_path / "broken", "torch", code))
    return "killed by SIGKILL (out of memory?)"


def aborted_while_importing(tmp_path, monkeypatch):
    code = "import os; print('terminate called: bad allocation', flush=True); os.kill(os.getpid(), 6)"
    monkeypatch.setenv("PYTHONPATH", broken_package(tmp_path / "broken", "torch", code))
    return "killed by SIGABRT: terminate called: bad allocation (see {first}/log.txt)"


def ends_as_if_all_were_well(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", broken_package(tmp_path / "broken", "torch", "raise SystemExit(0)"))
    return "its process ended and said nothing (exit status 0; see {first}/log.txt)"


def task_is_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "encode", lambda task: "TrainTask {\n")
    return "the task on standard input cannot be read ("


def process_cannot_start(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    return "its process or its log"


DEATHS = [
    *(import_fails, package_is_missing, killed_while_importing, aborted_while_importing),
    *(ends_as_if_all_were_well, task_is_unreadable, process_cannot_start),
]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("death", DEATHS)
def test_a_death_before_the_first_step_is_recorded(tmp_path, drawn_zip, monkeypatch, death, together):
    plan = make_plan(read_spec(project(tmp_path, drawn_zip, GRID)))
    cells = plan.cells if together else plan.cells[:1]
    for cell in cells:  # an earlier attempt, whose reason is no longer the reason
        record_failure(cell.run, cell.identity, "an old reason")
        cell.run.log.write_text("error: an old reason\n")
    work = [Job(cell.run.name, train_task(plan, cell), cell.run.log) for cell in cells]
    reason = death(tmp_path, monkeypatch).format(first=cells[0].run.name)
    outcome = run_jobs([group_process(work)], Slots(count=1, threads=1), Progress("cells", len(cells)))
    assert outcome.failed == [cell.run.name for cell in cells]
    for cell in cells:
        manifest = cell.run.read_manifest()
        assert (manifest["state"], manifest["identity"]) == ("failed", cell.identity)
        assert reason in manifest["error"]
        assert cell.run.why_not_done(cell.identity) == f"failed: {manifest['error']}"
        assert not (cell.run.path / ".lock").exists()


def test_the_leaderboard_and_status_say_it_and_the_next_grid_tries_again(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip, GRID + "\nsubmission: {cells: best}", epochs=1)
    broken = broken_package(tmp_path / "broken", "torch", "raise ImportError('undefined symbol: x')")
    path = os.pathsep.join([str(ROOT), broken])
    status, printed = jobs("grid", spec, cwd=tmp_path, PYTHONPATH=path)
    assert status == 1
    assert printed.count("ImportError: undefined symbol: x (exit status 1; see ") >= 2
    with (tmp_path / "experiments" / "x" / "leaderboard.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] != "baseline"]
    assert [row["state"] for row in rows] == ["failed", "failed"]
    assert all(row["error"].startswith("ImportError: undefined symbol: x") for row in rows)
    status, printed = jobs("status", spec, cwd=tmp_path)
    assert printed.count("failed: ImportError: undefined symbol: x") == 2
    status, printed = jobs("grid", spec, cwd=tmp_path)  # torch is whole again
    assert status == 0, printed
    assert "2 cells, 2 to run" in printed
    states = [json.loads(p.read_text())["state"] for p in tmp_path.glob("experiments/x/*/manifest.json")]
    assert states == ["done", "done"]


def test_the_manifest_of_a_folder_that_another_process_works_in_is_left_alone(tmp_path, drawn_zip):
    (cell,) = make_plan(read_spec(project(tmp_path, drawn_zip))).cells
    with cell.run.owned():
        cell.run.write_manifest(cell.identity, "started")
        record_failure(cell.run, cell.identity, "exit status 2")
        assert cell.run.manifest_state(cell.identity) == "started"
    record_failure(cell.run, cell.identity, "exit status 2")
    assert cell.run.why_not_done(cell.identity) == "failed: exit status 2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("error: the loss became nan\nepoch 3\n", "the loss became nan"),
        ("error: of one cell\nTraceback (most recent call last):\n  x\nKeyError: 3\n", "KeyError: 3"),
        ("Traceback (most recent call last):\nKeyError: 3\nerror: in words\n", "in words"),
        ("No module named submitit\nsrun: error: node1: task 0: Exited\n", "No module named submitit"),
        ("", None),
    ],
)
def test_the_reason_is_the_last_error_a_log_tells(tmp_path, text, reason):
    (tmp_path / "log.txt").write_text(text)
    assert last_error(tmp_path / "log.txt") == reason


def test_a_stage_that_is_stopped_while_it_imports_has_not_failed(tmp_path, drawn_zip, monkeypatch, capsys):
    """Ctrl-C reaches a process that has no handler yet: it dies of our signal, which is no fault of its own."""
    plan = make_plan(read_spec(project(tmp_path, drawn_zip)))
    path = broken_package(tmp_path / "slow", "pydantic", "import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", path)
    stop = processes.Stop()
    job = Job("wrangle x", wrangle_task(plan, plan.datasets[0]), tmp_path / "log.txt")
    threading.Timer(0.3, stop, (signal.SIGINT, None)).start()
    outcome = run_jobs([job], Slots(count=1, threads=1), Progress("stages", 1), stop=stop)
    assert outcome.status == {"wrangle x": EXIT_STOPPED}
    said = "wrangle x: stopped, nothing of it is kept; the same command begins it again"
    assert said in capsys.readouterr().out
