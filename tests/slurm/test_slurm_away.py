"""What follows where Slurm's commands fail, and where a job fails before its cell begins."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.jsonl import read_jsonl
from tests.cells import pid_in, send
from tests.slurm.conftest import SCRIPT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm-away")]

TWO = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.1}]}}"
HELD = "cluster.train.sbatch={hold: true}"
DOWN = 'echo "{}: error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
LONG = {"epochs": 8, "augment": {"crop": [0.5, 1], "rotate_deg": 10}}


def daemon(cluster, name):
    return int((Path(cluster["CLUSTER_FOLDER"]) / "run" / f"{name}.pid").read_text())


def killed(cluster, name):
    import os

    os.kill(daemon(cluster, name), signal.SIGKILL)


def up(cluster):
    done = subprocess.run(
        [str(SCRIPT), "up", cluster["CLUSTER_FOLDER"]], capture_output=True, text=True, env=_env(cluster)
    )
    assert done.returncode == 0, done.stderr


def _env(cluster):
    import os

    folder = Path(cluster["CLUSTER_FOLDER"])
    port = re.search(r"SlurmctldPort=(\d+)", (folder / "etc" / "slurm.conf").read_text())[1]
    return os.environ | {"CT_PORT": str(int(port) - 1), "TMPDIR": str(folder / "tmp")}


# ---------------------------------------------------------------- Slurm does not answer


def test_without_accounting_grid_status_and_the_final_job_do_what_they_can(lab, cluster):
    two = lab(f"{TWO}\nrun: {{resources: [{{stage: final, sbatch: {{hold: true}}}}]}}", epochs=1)
    two.ok("grid", "cluster.billing={unit: BU, core_hour: 1}")
    (final,) = two.until(lambda: two.mine() if len(two.mine()) == 1 else None)
    killed(cluster, "slurmdbd")
    try:
        printed = two.ok("status", "cluster.billing={unit: BU, core_hour: 1}")
        assert "2 done" in printed
        assert "note: what the jobs have cost is not known (sacct: " in printed
        assert f"all is queued already; evaluate waits as job {final}" in two.ok("grid")
        two.slurm("scontrol", "release", final)
        two.settle()
    finally:
        up(cluster)
    assert {row["state"] for row in two.leaderboard().values()} == {"done", "baseline"}, two.tails()


def test_the_leaderboard_comes_though_a_cell_s_job_died_while_accounting_was_away(lab, cluster):
    two = lab(f"{TWO}\nrun: {{resources: [{{stage: final, sbatch: {{hold: true}}}}]}}", epochs=8)
    two.ok("grid")
    try:
        with two.paused(count=2) as cells:
            killed(cluster, "slurmdbd")
            for cell in cells:
                two.slurm("scancel", two.job_of(cell))
        (final,) = two.until(lambda: two.mine() if len(two.mine()) == 1 else None)
        printed = two.ok("status")
        assert "2 missing" in printed, printed
        assert printed.count("cancelled") == 2, "the queue itself remembers for some minutes"
        two.slurm("scontrol", "release", final)
        two.settle()
    finally:
        up(cluster)
    rows = two.leaderboard()
    assert [row["error"] for row in rows.values() if row["state"] == "failed"] == ["cancelled"] * 2, (
        two.tails()
    )


def test_while_the_controller_is_away_status_shows_what_files_say_and_grid_submits_nothing(lab):
    two = lab(TWO, epochs=1)
    away = {name: DOWN.format(name) for name in ("squeue", "sacct", "scontrol", "sbatch", "scancel")}
    two.ok("grid", HELD)
    with two.wrapping(**away):
        printed = two.ok("status")
        assert printed.count("unknown") >= 2
        assert "note: the queue is not known (squeue: " in printed
        status, printed = two.run("grid")
        assert status == 2
        assert "It cannot be known which cells are queued, so nothing is submitted" in printed
        status, printed = two.run("cancel")
        assert status == 2
        assert "Nothing is cancelled" in printed
    assert len(two.mine()) == 3
    two.ok("cancel")
    two.settle()


def test_a_complete_grid_is_ranked_without_any_of_slurm(lab):
    one = lab("", epochs=1)
    one.ok("grid")
    one.settle()
    one.experiment.leaderboard.unlink()
    with one.wrapping(**{name: DOWN.format(name) for name in ("squeue", "sacct", "scontrol")}):
        assert "f1_micro" in one.ok("grid")
    assert len(one.leaderboard()) == 3


def test_a_command_that_fails_once_is_asked_again(lab):
    two = lab(TWO, epochs=1)
    two.ok("grid", HELD)
    once = 'if [ -e "$0.failed" ]; then real "$@"; else touch "$0.failed"; echo "Socket timed out" >&2; exit 1; fi'
    with two.wrapping(squeue=once):
        printed = two.ok("status")
    assert "2 pending" in printed
    assert "not known" not in printed
    two.ok("cancel")


def test_a_python_that_finds_no_slurm_is_put_back_into_the_queue_by_its_shell(lab, tmp_path):
    """As in a container: squeue, scontrol and sacct are not there."""
    bare = tmp_path / "bare.sh"
    bare.write_text(f'#!/bin/bash\nexec env PATH={Path(sys.executable).parent} {sys.executable} "$@"\n')
    bare.chmod(0o755)
    one = lab(**LONG)
    one.ok("grid", f"cluster.python={bare}")
    with one.paused() as (cell,):
        one.warn(job := one.job_of(cell), pid_in(cell))
    one.settle()
    assert one.ends(job) == ["REQUEUED", "COMPLETED"], one.tails()
    assert one.leaderboard()[cell.name]["state"] == "done", one.tails()


# ---------------------------------------------------------------- before a cell's first step


def test_a_wrong_python_is_a_failure_of_the_job_named_everywhere_and_mended_by_settings(lab):
    two = lab(TWO, epochs=1)
    wrong = "cluster.python=/no/such/python"
    for attempt in range(3):
        printed = two.ok("grid", wrong)
        assert "2 to submit" in printed, (attempt, printed)
        two.settle()  # the final job cannot start either
    said = "env: ‘/no/such/python’: No such file or directory (see slurm/"
    assert two.ok("status", wrong).count(said) == 2
    assert "/no/such/python’: No such file or directory" in two.ok("logs", wrong)
    assert "/no/such/python’: No such file or directory" in two.ok("logs", wrong, run="sgd")
    status, printed = two.run("grid", wrong)
    assert status == 1
    assert "0 to submit, 0 active, 2 held back" in printed
    assert "failed 3 times under the same code and settings" in printed
    errors = {row["error"] for row in two.leaderboard().values() if row["state"] == "failed"}
    assert len(errors) == 2
    assert all("/no/such/python" in error and "see slurm/" in error for error in errors), errors
    assert re.search(
        "`labelgrid grid experiments.x.yaml --cluster slurm .*` trains it anew",
        two.ok("retry", wrong, run="sgd"),
    )
    assert "# ---- train-1: 1 job\n" in two.ok("plan", wrong)  # the other one stays held back
    assert "2 to submit" in two.ok("grid")  # corrected settings release both
    two.settle()
    assert {row["state"] for row in two.leaderboard().values()} == {"done", "baseline"}, two.tails()


def test_a_cell_without_a_folder_can_be_retried(lab):
    two = lab(TWO, epochs=1)
    assert "it has no folder yet; `labelgrid grid experiments/x.yaml --cluster slurm" in two.ok(
        "retry", run="sgd"
    )
    assert [event["cell"][:3] for event in two.events("retry")] == ["sgd"]
    assert "--run nothing: no cell starts with that" in two.run("retry", run="nothing")[1]


def test_a_warning_during_a_slow_start_requeues(lab, tmp_path):
    """The start takes as long as it takes until the warning is there."""
    slow, begun, warned = (tmp_path / name for name in ("slow.sh", "begun", "warned"))
    slow.write_text(
        f"#!/bin/bash\necho $$ > {begun}\nuntil [ -e {warned} ]; do sleep 0.1; done\n"
        f'exec {sys.executable} "$@"\n'
    )
    slow.chmod(0o755)
    one = lab("", epochs=2)
    one.ok("grid", f"cluster.python={slow}")
    (event,) = (event for event in one.events("submitted") if "cell" in event)
    job = event["jobs"][0]
    pid = int(one.until(lambda: begun.exists() and begun.read_text()))  # the shell of the step, not srun
    one.warn(job, pid)
    warned.touch()
    one.settle()
    assert one.ends(job) == ["REQUEUED", "COMPLETED"], one.tails()
    assert {row["state"] for row in one.leaderboard().values()} == {"done", "baseline"}, one.tails()


# ---------------------------------------------------------------- where requeueing is forbidden


def test_every_cell_has_its_own_continuation_and_a_complete_one_releases_the_rest(lab):
    two = lab(TWO, **LONG)
    printed = two.ok("grid", "cluster.requeue=false", "cluster.continuations=2", "cluster.max_parallel=2")
    assert len(re.findall(r"queued train-1(-more-\d)?: \d+ \(2 cells in 2 jobs\)", printed)) == 3
    with two.paused(count=2) as (adam, sgd):
        first = {e["cell"]: e["jobs"][0] for e in reversed(two.events("submitted")) if "cell" in e}
        two.warn(first[adam.name], pid_in(adam))
        send(pid_in(adam), signal.SIGCONT)
        more = two.until(lambda: [line for line in two.queue() if re.search("train-1-more-1.*RUNNING", line)])
        assert len(more) == 1
        assert any(line.startswith(f"{first[sgd.name]}|") for line in two.queue()), (
            "the other is not waited for"
        )
        two.slurm("scancel", first[sgd.name])  # a hard end: it goes on once its array is over
    two.settle()
    assert {row["state"] for row in two.leaderboard().values()} == {"done", "baseline"}, two.tails()
    for cell in (adam, sgd):
        rows = [row["epoch"] for row in read_jsonl(cell / "metrics.jsonl") if "validation/loss" in row]
        assert rows == list(range(1, 9))
    last = [e["jobs"][0] for e in two.events("submitted") if "cell" in e and "more-2" in e["proof"]["name"]]
    assert len(last) == 2
    # Not asked of accounting: an array that is cancelled task by task while it waits may stay PENDING there.
    assert not set(last) & {line.split("|")[0] for line in two.queue()}
    assert not [log for job in last for log in two.experiment.slurm.glob(f"{job}_*log.out")], "it had begun"
    assert [log for job in first.values() for log in two.experiment.slurm.glob(f"{job}_*log.out")]
