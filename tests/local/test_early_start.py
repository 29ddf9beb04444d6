"""Training processes are started while the data is packed: they import ahead, and leave nothing if not needed."""

import contextlib
import time
import zipfile
from pathlib import Path

import pytest

from jobs.local.processes import Job, run_jobs, started_early
from jobs.local.progress import Progress
from jobs.local.slots import Slots
from jobs.planning.plan import make_plan
from jobs.planning.tasks import train_task, wrangle_task
from jobs.stages import needed_imports
from pipeline.spec.reading import read_spec
from tests.cells import PATIENCE_S, jobs, packed_project, project
from tests.conftest import ROOT

GRID = "grid: {seeds: [1, 2]}\nrun: {parallel: 2, threads: 1}"


def imports(pid):
    """Whether a process has loaded torch."""
    with contextlib.suppress(OSError):
        return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()
    return False


def cell_jobs(spec):
    plan = make_plan(read_spec(spec))
    return plan, [Job(c.run.name, train_task(plan, c), c.run.log, c.run.metrics) for c in plan.cells]


@pytest.mark.slow
def test_it_imports_before_it_is_given_its_task_and_then_does_that(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip, GRID)
    plan, work = cell_jobs(spec)
    slots = Slots(count=2, threads=1)
    with started_early(work, slots, ROOT) as early:
        deadline = time.monotonic() + PATIENCE_S
        while not all(imports(process.process.pid) for process in early):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not any(cell.run.manifest.exists() for cell in plan.cells)
        outcome = run_jobs(work, slots, Progress("cells", 2), code=ROOT, early=early)
    assert outcome.status == {job.name: 0 for job in work}
    assert [process.process.returncode for process in early] == [0, 0]  # it was they
    assert all(cell.run.why_not_done(cell.identity) is None for cell in plan.cells)


def test_what_was_not_needed_leaves_no_process_and_no_trace(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip, GRID)
    plan, work = cell_jobs(spec)
    kept = plan.cells[1].run
    kept.path.mkdir(parents=True)
    kept.log.write_text("")  # of another process, which has said nothing so far
    with started_early(work, Slots(count=2, threads=1), ROOT) as early:
        pids = [process.process.pid for process in early]
        assert all(cell.run.log.exists() for cell in plan.cells)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not plan.cells[0].run.path.exists()
    assert kept.log.exists()


@pytest.mark.slow
def test_a_grid_whose_pictures_cannot_be_packed_leaves_no_cells(tmp_path, drawn_zip):
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(drawn_zip.train) as whole, zipfile.ZipFile(broken, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, b"no picture" if name.endswith(".jpg") else whole.read(name))
    spec = project(tmp_path, drawn_zip, GRID)
    spec.write_text(spec.read_text().replace(str(drawn_zip.train), str(broken)))
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 1
    assert "error: wrangle" in printed
    assert "train:" not in printed
    folders = [
        path for path in (tmp_path / "experiments" / "x").iterdir() if path.name not in ("code", "logs")
    ]
    assert [path.name for path in folders] == ["ledger.jsonl"]


def test_each_process_imports_ahead_only_what_its_task_needs(tmp_path, drawn_zip):
    plan, (plain, _) = cell_jobs(project(tmp_path, drawn_zip, GRID))
    assert needed_imports(plain.task) == ["pipeline.training.loop"]
    _, (other, _) = cell_jobs(project(tmp_path, drawn_zip, GRID, model={"name": "resnet18"}))
    assert needed_imports(other.task) == ["pipeline.training.loop", "torchvision.models"]
    assert needed_imports(wrangle_task(plan, plan.datasets[0])) == []


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.slow
def test_a_grid_starts_ahead_only_where_there_is_something_to_wait_for(
    tmp_path, drawn_zip, packed, monkeypatch
):
    from jobs.clusters.profile import load_profile
    from jobs.commands import run
    from jobs.commands.request import Request

    make = packed_project if packed else project
    spec = make(tmp_path, drawn_zip, "run: {threads: 1}", epochs=1)
    started = []
    monkeypatch.setattr(run, "started_early", lambda work, *rest: _counted(started, work, *rest))
    monkeypatch.chdir(tmp_path)
    assert run.grid(Request(read_spec(spec), "local", load_profile("local"), None)) == 0
    assert started == [0 if packed else 1]


@contextlib.contextmanager
def _counted(started, *arguments):
    with started_early(*arguments) as early:
        started.append(len(early))
        yield early
