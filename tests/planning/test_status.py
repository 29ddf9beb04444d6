"""One function decides how a cell stands, whatever queue it is asked about."""

from dataclasses import replace

import pytest

from jobs.planning.plan import make_plan
from jobs.planning.status import JobState, StartedJob, Want, cell_status, local_status
from pipeline.spec.reading import read_spec
from tests.cells import project

RUNNING = JobState("running", active=True, elapsed_s=7)
CRASHED = JobState("failed", ending="ended with status 1:0", crashed=True)
UNSEEN = JobState("unknown", active=True, reason="job 1 of anna, whose jobs are not shown to you")
CANCELLED = JobState("cancelled", ending="cancelled")
FULL = JobState("out_of_memory", ending="out of memory", crashed=True)


@pytest.fixture
def cell(tmp_path, drawn_zip):
    (only,) = make_plan(read_spec(project(tmp_path, drawn_zip))).cells
    return only


def job(state, number=1, settings="new", mem_gb=None):
    return StartedJob(str(number), state, settings, mem_gb)


@pytest.mark.parametrize(
    ("reason", "jobs", "kind", "why"),
    [
        (None, [], "done", ""),
        ("new", [], "pending", "new"),
        ("diverged: nan", [job(RUNNING)], "held", "diverged: nan; `make retry RUN="),
        ("unfinished", [job(CRASHED), job(RUNNING, 2)], "active", "running"),
        ("unfinished", [job(RUNNING), job(CRASHED, 2)], "active", "running"),
        ("new", [job(UNSEEN)], "active", "job 1 of anna, whose jobs are not shown"),
        ("new", [job(None, 9)], "pending", "new; its job 9 is unknown to Slurm"),
        ("unfinished", [job(CRASHED)], "pending", "ended with status 1:0"),
        ("failed: no weights", [job(CRASHED)], "pending", "failed: no weights"),
        ("failed: killed", [job(CANCELLED)], "pending", "cancelled"),
        ("unfinished", [job(FULL, mem_gb=4.0)], "held", "out of memory with 4 GB; ask for more"),
        ("unfinished", [job(FULL, mem_gb=2.0)], "pending", "out of memory"),
        ("unfinished", [job(CRASHED)] * 2, "pending", "ended with status 1:0"),
        ("unfinished", [job(CRASHED)] * 3, "held", "failed 3 times under the same code and settings ("),
        ("unfinished", [job(CRASHED, settings="old")] * 3, "pending", "ended with status 1:0"),
        ("unfinished", [*[job(CRASHED)] * 3, job(CANCELLED)], "pending", "cancelled"),
    ],
)
def test_what_a_queue_says_decides_where_files_do_not(cell, reason, jobs, kind, why):
    status = cell_status(replace(cell, reason=reason), jobs, Want("new", 4.0))
    assert status.kind == kind
    assert status.why.startswith(why)
    assert (status.why == "") == (why == "")


def test_on_this_machine_a_cell_is_active_while_a_process_owns_its_folder(tmp_path, drawn_zip):
    plan = make_plan(read_spec(project(tmp_path, drawn_zip, "grid: {seeds: [1, 2]}")))
    first, second = plan.cells
    with first.run.owned():
        one, other = local_status(plan).cells
    assert (one.kind, one.state.state, one.job) == ("active", "running", None)
    assert one.state.reason.startswith("process ")
    assert (other.planned, other.kind, other.why) == (second, "pending", "new")
    assert {status.kind for status in local_status(plan).cells} == {"pending"}
