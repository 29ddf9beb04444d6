"""A job number is believed and cancelled only with proof; nothing of the shell changes what is submitted."""

import contextlib
import re
from pathlib import Path

import pytest

from pipeline.storage.jsonl import read_jsonl
from tests.slurm.conftest import SETTINGS, Lab

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm-shared")]

TWO = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.1}]}}"
HELD = "cluster.train.sbatch={hold: true}"
STRANGER = (
    "sbatch",
    "-A",
    "project_2000000",
    "-p",
    "small",
    "--parsable",
    "--output=/dev/null",
    "--chdir=/tmp",
)


def stranger(lab, name="theirs"):
    return lab.slurm(*STRANGER, f"--job-name={name}", "--wrap", "sleep 3600").strip()


def state(lab, job):
    return lab.slurm("squeue", "-h", "-j", job, "-o", "%T").strip()


def working_in(folder):
    """The processes whose current folder it is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += [process.name] * ((process / "cwd").readlink() == folder)
    return found


def renumbered(lab, job):
    """Write into the ledger that every job of it has this number, as if the cluster had begun to count again."""
    text = lab.experiment.ledger.read_text()
    text = re.sub(r'"jobs": \["\d+', f'"jobs": ["{job}', text)
    lab.experiment.ledger.write_text(re.sub(r', "crc": \d+', "", text))


def test_a_stranger_s_job_of_the_same_number_on_another_cluster_is_left_alone(lab, other_cluster):
    ours = lab(TWO, epochs=1)
    ours.ok("grid", HELD)
    there = Lab(ours.root, other_cluster)
    theirs = stranger(there)
    renumbered(ours, theirs)
    there.until(lambda: state(there, theirs) == "RUNNING")
    printed = there.ok("status")
    assert f"its job {theirs}_0 is of cluster slurmtest, not of othertest" in printed, printed
    there.ok("cancel")
    assert state(there, theirs) == "RUNNING"
    printed = there.ok("grid")
    assert "2 cells, 2 to submit, 0 active" in printed
    assert state(there, theirs) == "RUNNING"
    there.settle()
    assert {row["state"] for row in ours.leaderboard().values()} == {"done", "baseline"}
    there.slurm("scancel", theirs)
    assert len(ours.mine()) == 3, "the jobs of the first cluster wait on"


@pytest.mark.parametrize("known", [True, False], ids=["another job", "an older ledger"])
def test_a_number_without_proof_is_neither_believed_nor_cancelled(lab, known):
    ours = lab("", epochs=1)
    ours.ok("grid", HELD)
    (cell,) = {event["cell"] for event in ours.events("submitted") if "cell" in event}
    job = ours.job_of(ours.root / cell)
    theirs = stranger(ours, f"labelgrid-x-{'train-1' if known else 'final'}")
    renumbered(ours, theirs)
    if not known:  # as version 0.1 wrote it, and the number is even its own
        text = re.sub(r', "proof": {[^}]*}', "", ours.experiment.ledger.read_text())
        ours.experiment.ledger.write_text(text.replace(f'"{theirs}"', f'"{job}"'))
    printed = ours.ok("cancel")
    assert "cancelled 0 jobs" in printed
    assert state(ours, theirs) in ("RUNNING", "PENDING")
    assert state(ours, job) == "PENDING"
    said = "is unknown to Slurm" if known else "cannot be proven to be ours"
    printed = ours.ok("grid")
    assert "1 cell, 1 to submit" in printed
    assert said in printed
    ours.slurm("scancel", theirs, job)


def test_a_refused_scancel_is_said_and_the_job_still_counts_as_active(lab):
    two = lab(TWO, epochs=1)
    two.ok("grid", HELD)
    with two.wrapping(scancel='echo "scancel: error: Kill job error: Access/permission denied" >&2; exit 1'):
        status, printed = two.run("cancel")
    assert status == 1
    assert "not cancelled: job " in printed
    assert "Access/permission denied" in printed
    assert "2 active" in two.ok("grid")
    two.ok("cancel")
    two.settle()


# ---------------------------------------------------------------- the environment is ours

HOSTILE = {
    "SBATCH_ACCOUNT": "project_9999999",
    "SBATCH_PARTITION": "nowhere",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_MEM_PER_NODE": "900G",
    "SBATCH_JOB_NAME": "theirs",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_ARRAY_INX": "0-999",
    "SQUEUE_FORMAT": "%j",
    "SQUEUE_STATES": "completed",
    "SACCT_FORMAT": "JobName",
    "SINFO_FORMAT": "%n",
    "SCANCEL_STATE": "SUSPENDED",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_ARRAY_JOB_ID": "77",
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_JOB_ID": "77",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_MEM_PER_NODE": "100",
    "SLURM_EXPORT_ENV": "NONE",
}


def test_nothing_of_the_shell_reaches_what_is_submitted_and_what_was_dropped_is_said(lab):
    one = lab(epochs=1)
    with one.surrounded(**HOSTILE):
        printed = one.ok("grid")
    assert re.search(
        r"note: of this shell, jobs are submitted without .*SBATCH_ACCOUNT=project_9999999", printed
    )
    assert "this runs inside job 77" in printed
    assert "project_2000000 (--set cluster.account=project_2000000)" in printed
    listed = one.slurm("squeue", "-h", "-o", "%a|%j|%l|%P|%Z").splitlines()
    mine = [line.split("|") for line in listed if str(one.root) in line]
    assert mine
    assert {line[0] for line in mine} == {"project_2000000"}
    assert {line[3] for line in mine} <= {"gpu", "small"}
    assert all(line[1].startswith("labelgrid-x-") for line in mine)
    with one.surrounded(**HOSTILE):
        assert "unknown" not in one.ok("status")
    one.settle()
    with one.surrounded(**HOSTILE):
        assert "1 done" in one.ok("status")
    assert {row["state"] for row in one.leaderboard().values()} == {"done", "baseline"}, one.tails()


def test_a_grid_from_an_allocation_and_from_an_array_task_is_as_from_a_login_node(lab):
    two = lab("grid: {seeds: [1]}", epochs=1)
    make = f"import sys; sys.argv[1:] = {['grid', 'experiments/x.yaml', '--cluster', 'slurm', '--set', *SETTINGS]!r}; "
    make += "from jobs.cli import main; sys.exit(main())"
    (two.root / "grid.py").write_text(make)
    import sys

    with two.surrounded(PYTHONPATH=str(two.code)):
        where = ("-A", "project_2000000", "-p", "small", "--mem-per-cpu=900", f"--chdir={two.root}")
        two.slurm("salloc", *where, "srun", sys.executable, "grid.py")
        two.settle()
        assert {row["state"] for row in two.leaderboard().values()} == {"done", "baseline"}, two.tails()
        spec = two.root / "experiments" / "x.yaml"
        spec.write_text(spec.read_text().replace("seeds: [1]", "seeds: [1, 2, 3]"))
        two.slurm(
            "sbatch", "--wait", *where, "--array=1-1", "--wrap", f"{sys.executable} grid.py > array.txt 2>&1"
        )
        assert "2 to submit" in (two.root / "array.txt").read_text()
        two.settle()
    rows = two.leaderboard().values()
    assert [row["state"] for row in rows].count("done") == 3, two.tails()


@pytest.mark.parametrize(
    ("site", "error"),
    [
        ("other-account", "account project_2000001 instead of project_2000000"),
        ("more-gpus", "2 GPUs instead of 1"),
    ],
)
def test_a_job_that_became_dearer_or_another_account_s_is_cancelled(lab, site, error):
    two = lab(TWO, epochs=1)
    status, printed = two.run("grid", f"cluster.train.sbatch={{comment: {site}}}")
    assert status == 2
    assert f"train-1 was queued as something else than planned: {error}" in printed
    two.until(lambda: not two.mine())
    assert two.events("submitted") == []
    assert "2 to submit" in two.ok("grid", HELD)
    two.ok("cancel")


def test_what_a_site_renames_or_rounds_is_said_and_the_job_stays_known(lab):
    one = lab("", epochs=1)
    printed = one.ok("grid", "cluster.train.sbatch={comment: renamed, hold: true}")
    assert "note: train-1: the site calls it site-labelgrid-x-train-1-" in printed
    assert "1 active" in one.ok("grid")
    assert "cancelled 2 jobs (1 cell)" in one.ok("cancel")
    one.settle()
    printed = one.ok("grid", "cluster.train.sbatch={comment: rounded}", "cluster.train.time_min=60")
    assert "note: train-1: 61 minutes instead of 60" in printed
    one.settle()


# ---------------------------------------------------------------- again and again


def test_a_submission_whose_final_job_is_queued_is_not_restarted(lab):
    late = lab("run: {resources: [{stage: final, sbatch: {begin: now+1hour}}]}", epochs=1)
    printed = late.ok("submission")
    final = re.search(r"queued final: (\d+)", printed)[1]
    late.until(lambda: late.mine() == [final])
    assert f"all is queued already; evaluate waits as job {final}" in late.ok("submission")
    assert late.mine() == [final]
    late.slurm("scontrol", "update", f"JobId={final}", "StartTime=now")
    late.settle()
    assert late.experiment.submission.exists(), late.tails()


def test_cells_that_are_ending_are_waited_for(lab):
    two = lab(TWO, epochs=8)
    two.ok("grid")
    with two.paused(count=2):
        two.ok("cancel")
    printed = two.ok("grid")  # their processes are still being ended
    assert "2 cells, 2 to submit, 0 active" in printed, printed
    two.ok("cancel")
    two.settle()


def test_cancelling_one_cell_of_a_shared_job_names_the_others(lab):
    two = lab(TWO, epochs=1)
    two.ok("grid", "cluster.cells_per_job=2", HELD)
    printed = two.ok("cancel", run="sgd")
    assert re.search(r"job \d+ trains other cells too, which end with it: adam-", printed), printed
    assert "cancelled 1 job (2 cells)" in printed
    two.ok("cancel")


def test_an_sbatch_that_breaks_off_leaves_nothing_queued(lab):
    one = lab(packed=False, epochs=1)
    broken = 'n=$(ls -d "$0".* 2>/dev/null | wc -l); touch "$0.$n"; real "$@" > "$0.said" || exit 1\n'
    broken += 'if [ "$n" -ge 1 ]; then echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1; fi\n'
    with one.wrapping(sbatch=broken + 'cat "$0.said"'):
        status, printed = one.run("grid")  # Slurm has the second job, and we do not know its number
    assert status == 2
    assert "Slurm does not answer" in printed
    assert one.mine() == []
    assert {event["event"] for event in read_jsonl(one.experiment.ledger)} == {"intent", "withdrawn"}
    assert list(one.experiment.slurm.iterdir()) == []
    one.ok("grid")
    one.settle()
    assert {row["state"] for row in one.leaderboard().values()} == {"done", "baseline"}


def test_a_job_that_had_begun_leaves_no_file_after_the_launch_broke_off(lab):
    two = lab(TWO, packed=False, epochs=1)
    folder = two.experiment.slurm
    writes = f'trap "" TERM; touch {two.root}/begun; sleep 1; touch {folder}/${{SLURM_JOB_ID}}_0_result.pkl'
    broken = f"""name=$(sed -n 's/^#SBATCH --job-name=//p' "${{@: -1}}")
real -A project_2000000 -p small --job-name="$name" --chdir={folder} --output=/dev/null --wrap='{writes}'
until [ -e {two.root}/begun ]; do sleep 0.1; done
echo "sbatch: error: Invalid account" >&2; exit 1
"""
    with two.wrapping(sbatch=broken):
        status, _ = two.run("grid")
    assert status == 2
    two.until(lambda: not working_in(folder))  # by when it has written, if it still could
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("when", ["before its number was known", "after"])
def test_a_killed_submission_is_found_by_the_next_one(lab, when):
    two = lab(TWO, epochs=1)
    at = 2 if when == "after" else 1
    kill = 'n=$(ls -d "$0".* 2>/dev/null | wc -l); touch "$0.$n"; real "$@"\n'
    kill += f'[ "$n" -ge {at - 1} ] && kill -9 $PPID; true'
    with two.wrapping(sbatch=kill):
        status, _ = two.run("grid", HELD)
    assert status == -9
    left = two.mine()
    assert left
    assert "a launch broke off" in two.ok("status")
    printed = two.ok("grid")
    if when == "after":  # the array of cells is complete, the final job is not
        assert re.search(
            r"job \d+ \(labelgrid-x-train-1-\w+\) was queued by a launch that broke off", printed
        )
        assert "taken over" in printed
        assert "0 to submit, 2 active" in printed
        two.slurm("scontrol", "release", min(int(job.split("_")[0]) for job in left).__str__())
    else:
        assert "it is cancelled" in printed
        assert "2 to submit, 0 active" in printed
    two.settle()
    assert {row["state"] for row in two.leaderboard().values()} == {"done", "baseline"}, two.tails()
