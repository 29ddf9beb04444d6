"""`grid --cluster slurm` on a real cluster: submit once, log out, lose nothing."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.selection import Selection
from pipeline.storage.jsonl import read_jsonl
from tests.cells import PATIENCE_S, is_signalled, packed_project, pid_in
from tests.conftest import ROOT
from tests.slurm.conftest import SCRIPT, SETTINGS, Lab

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

# a second cluster on another worker, whose tests compare with a cell that nothing disturbed
RESUMED = pytest.mark.xdist_group("slurm-resumed")
THREE = (
    "grid: {cells: [{train.optimizer: {name: adam, lr: 1e-3}}, {train.optimizer: {name: adadelta}},"
    " {train.optimizer: {name: sgd, lr: 0.01}, train.schedule: {name: cosine}}]}"
)
TWO = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.1}]}}"
HELD = "cluster.train.sbatch={hold: true}"
LONG = {
    "epochs": 8,
    "optimizer": {"name": "sgd", "lr": 0.01},
    "augment": {"crop": [0.5, 1], "rotate_deg": 10},
}


def same(lab, cell, other_lab, other):
    mine, theirs = lab.weights(cell), other_lab.weights(other)
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory, drawn_zip):
    """The LONG cell trained without any disturbance."""
    root = tmp_path_factory.mktemp("undisturbed")
    packed_project(root, drawn_zip, **LONG)
    lab = Lab(root, cluster)
    lab.ok("grid")
    lab.settle()
    (cell,) = lab.cells()
    assert lab.state(cell) == "done", lab.tails()
    return lab, cell


def test_one_command_queues_everything_and_the_submission_appears_by_itself(lab):
    three = lab(THREE, packed=False)
    printed = three.ok("submission")
    assert re.search(
        r"queued wrangle: \d+\nqueued train-1: \d+ \(3 cells in 3 jobs\)\nqueued final: \d+", printed
    )
    left = subprocess.run(["pgrep", "-f", f"jobs submission.*{three.root}"], capture_output=True, text=True)
    assert left.stdout == ""
    three.settle()
    rows = three.leaderboard()
    assert [row["state"] for row in rows.values()].count("done") == 3, three.tails()
    assert len(three.experiment.submission.read_text().splitlines()) == 41
    assert all((cell / "log.txt").exists() for cell in three.cells())
    files = [path.name for path in three.experiment.slurm.iterdir()]
    assert len(files) == 3 * 5 + 2 * 3  # three a job, and a script with its link each submission
    # and again: nothing is submitted, the leaderboard is shown
    printed = three.ok("grid")
    assert "3 cells, 0 to submit, 0 active" in printed
    assert three.mine() == []
    assert "3 done; leaderboard up to date" in three.ok("status")


def test_a_submission_asked_for_later_is_queued_by_itself(lab):
    later = lab(TWO, epochs=1)
    later.ok("grid", HELD)
    printed = later.ok("submission", HELD)  # while the grid is active: a final job that does more
    assert "queued final" in printed
    assert "all is queued already" in later.ok("submission", HELD)
    later.slurm("scontrol", "release", ",".join(sorted({job.split("_")[0] for job in later.mine()})))
    later.settle()
    assert later.experiment.submission.exists(), later.tails()
    later.experiment.submission.unlink()
    for path in later.experiment.path.glob("*/scores_test.npz"):
        path.unlink()
    assert "queued final" in later.ok("submission")  # with every cell done
    later.settle()
    assert len(later.experiment.submission.read_text().splitlines()) == 41


def test_one_of_four_fails_is_named_and_only_it_runs_again(lab, tmp_path):
    broken = tmp_path / "w.pth"
    broken.write_text("no weights")
    three = ", ".join(f"{{train.seed: {seed}}}" for seed in range(3))
    four = lab(f"grid: {{cells: [{three}, {{train.model: {{name: cnn3, weights: {broken}}}}}]}}", epochs=1)
    four.ok("grid")
    four.settle()
    rows = four.leaderboard()
    assert [row["state"] for row in rows.values()].count("done") == 3, four.tails()
    (failed,) = (row for row in rows.values() if row["state"] == "failed")
    assert "w.pth: cannot be read as weights" in failed["error"]
    done = next(cell for cell in four.cells() if four.state(cell) == "done")
    shutil.copy(done / "checkpoint_best.pt", broken)  # mended: weights that fit
    printed = four.ok("grid")
    assert "4 cells, 1 to submit, 0 active" in printed
    assert "(1 cell in 1 job)" in printed
    four.settle()
    rows = four.leaderboard()
    assert [row["state"] for row in rows.values()].count("done") == 4
    assert "4 cells, 0 to submit" in four.ok("grid")


# ---------------------------------------------------------------- disturbances


@RESUMED
def test_at_the_warning_a_cell_saves_is_requeued_and_ends_with_the_same_bits(lab, undisturbed):
    two = lab(**LONG)
    two.ok("grid")
    with two.paused() as (cell,):
        two.warn(job := two.job_of(cell), warned := pid_in(cell))
    two.until(lambda: not Path(f"/proc/{warned}").exists())
    assert "saved" in (cell / "log.txt").read_text()
    with two.paused():  # in its second start
        assert "1 active" in two.ok("grid")
    two.settle()
    assert two.ends(job) == ["REQUEUED", "COMPLETED"]
    assert same(two, cell, *undisturbed)
    assert two.leaderboard()[cell.name]["state"] == "done"


@RESUMED
def test_a_preempted_cell_ends_with_the_same_bits(lab, undisturbed):
    low = lab(**LONG)
    low.ok("grid", "cluster.train.qos=preemptible", "cluster.train.gres=gpu:v100:4")
    urgent = [
        "sbatch",
        "-A",
        "project_2000000",
        "--qos=urgent",
        "-p",
        "gpu",
        "--gres=gpu:v100:4",
        "-N2",
        "-t",
        "5",
    ]
    with low.paused() as (cell,):
        pid = pid_in(cell)
        low.slurm(*urgent, "--chdir=/tmp", "--output=/dev/null", "--wrap", "sleep 2")
        low.until(lambda: is_signalled(pid))
    low.settle()
    assert len(low.ends(low.job_of(cell))) > 1, "it was never preempted: this shows nothing"
    assert same(low, cell, *undisturbed)


@RESUMED
def test_after_a_node_failure_the_cell_goes_on_elsewhere_with_the_same_bits(lab, undisturbed, cluster):
    fails = lab(**LONG)
    fails.ok("grid")
    with fails.paused() as (cell,):
        job = fails.job_of(cell)
        node = next(line.split("|")[3] for line in fails.queue() if line.startswith(f"{job}|"))
        subprocess.run(
            [str(SCRIPT), "node-fail", node, cluster["CLUSTER_FOLDER"]], check=True, capture_output=True
        )
    try:
        fails.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        fails.settle()
    finally:
        subprocess.run(
            [str(SCRIPT), "node-start", node, cluster["CLUSTER_FOLDER"]], check=True, capture_output=True
        )
    assert same(fails, cell, *undisturbed)
    assert fails.leaderboard()[cell.name]["state"] == "done"


@RESUMED
@pytest.mark.parametrize("how", ["scancel", "kill"])
def test_a_cell_that_is_cancelled_or_killed_is_named_and_completed_by_the_next_grid(lab, undisturbed, how):
    hurt = lab(TWO, **LONG)
    hurt.ok("grid")
    with hurt.paused("sgd") as (cell,):
        if how == "scancel":
            hurt.slurm("scancel", hurt.job_of(cell))
        else:
            os.kill(submitit_process(hurt.job_of(cell)), signal.SIGKILL)
    hurt.settle()
    row = hurt.leaderboard()[cell.name]
    assert row["state"] == "failed"
    assert row["error"] == ("cancelled" if how == "scancel" else "killed by SIGKILL (out of memory?)")
    epochs = hurt.epochs(cell)
    assert 0 < epochs < 8
    assert "2 cells, 1 to submit" in hurt.ok("grid")
    hurt.settle()
    assert hurt.leaderboard()[cell.name]["state"] == "done", hurt.tails()
    rows = [row["epoch"] for row in read_jsonl(cell / "metrics.jsonl") if "validation/loss" in row]
    assert rows == list(range(1, 9)), "it went on from where it was"


def submitit_process(job):
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            base, _, task = job.partition("_")
            ours = f"SLURM_ARRAY_JOB_ID={base}\0".encode() in environment
            ours = ours and f"SLURM_ARRAY_TASK_ID={task}\0".encode() in environment
            if b"submitit.core._submit" in command and b"srun" not in command and ours:
                return int(entry.name)
    raise AssertionError(f"no process of job {job}")


def test_out_of_memory_is_named_held_back_and_completed_with_more(lab):
    small = lab(TWO, epochs=2)
    little = "run.resources=[{when: {train.optimizer.name: sgd}, mem_gb: 0.15}]"
    small.ok("grid", little)
    (cell,) = (
        small.experiment.path / e["cell"] for e in small.events("submitted") if "sgd" in e.get("cell", "")
    )

    def over():
        return small.job_of(cell) not in small.mine()

    small.until(lambda: over() or pid_in(cell))
    if not over():
        with small.paused("sgd", when=Path.exists):  # memory is looked at every few seconds here
            small.until(over)
    small.settle()
    rows = small.leaderboard()
    (failed,) = (row for row in rows.values() if row["state"] == "failed")
    assert failed["cell"].startswith("sgd")
    assert failed["error"] == "out of memory", small.tails()
    status, printed = small.run("grid", little)
    assert "0 to submit, 0 active, 1 held back" in printed
    assert "out of memory with 0.15 GB; ask for more" in printed
    assert status == 1
    assert small.mine() == []
    assert "1 to submit" in small.ok("grid")
    small.settle()
    assert {row["state"] for row in small.leaderboard().values()} == {"done", "baseline"}


def test_a_cell_that_diverges_is_held_back_until_retried(lab):
    two = lab(TWO.replace("lr: 0.1", "lr: 1e30"), epochs=1)
    two.ok("grid")
    two.settle()
    (row,) = (row for row in two.leaderboard().values() if row["state"] == "diverged")
    status, printed = two.run("grid")
    assert status == 1
    assert "0 to submit, 0 active, 1 held back" in printed
    assert f"`labelgrid retry SPEC --run {row['cell']}` trains it anew" in printed
    assert two.mine() == []
    two.ok("retry", run=row["cell"])
    assert "1 to submit" in two.ok("grid")
    two.settle()


# ---------------------------------------------------------------- launch_lock


def test_two_grids_at_the_same_moment_train_no_cell_twice(lab):
    two = lab(TWO, epochs=2)
    first, second = two.start("grid"), two.start("grid")
    printed = [process.communicate(timeout=PATIENCE_S)[0] for process in (first, second)]
    assert sorted(re.search(r"(\d) to submit, (\d) active", text).groups() for text in printed) == [
        ("0", "2"),
        ("2", "0"),
    ], printed
    two.settle()
    trained = [e for e in read_jsonl(two.experiment.ledger) if e["event"] == "submitted" and "cell" in e]
    assert len(trained) == 2
    assert {row["state"] for row in two.leaderboard().values()} == {"done", "baseline"}


def test_code_broken_after_the_submit_does_not_reach_queued_cells(lab, tmp_path):
    for package in ("pipeline", "jobs"):
        shutil.copytree(
            ROOT / package, tmp_path / "code" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    edited = lab(epochs=1)
    edited.code = tmp_path / "code"
    edited.ok("grid")
    for path in (tmp_path / "code").rglob("*.py"):
        path.write_text("raise RuntimeError('edited after the submit')\n")
    edited.settle()
    rows = edited.leaderboard()
    assert {row["state"] for row in rows.values()} == {"done", "baseline"}, edited.tails()


def test_cells_of_different_code_on_one_leaderboard_are_said_to_be(lab, tmp_path):
    for package in ("pipeline", "jobs"):
        shutil.copytree(
            ROOT / package, tmp_path / "code" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    two = lab("grid: {seeds: [0]}", epochs=1)
    two.ok("grid")
    two.settle()
    two.code = tmp_path / "code"
    with (tmp_path / "code" / "pipeline" / "errors.py").open("a") as file:
        file.write("# an edit\n")
    spec = two.root / "experiments" / "x.yaml"
    spec.write_text(spec.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    assert "2 cells, 1 to submit" in two.ok("grid")
    two.settle()
    assert "these cells come from different code" in two.ok("grid")


@pytest.mark.parametrize(
    ("settings", "drop", "error"),
    [
        ((), "cluster.account", "no account given"),
        (("cluster.train.time_min=9999",), None, "time limit"),
        (("cluster.train.gres=gpu:a100:1",), None, "node configuration is not available"),
        (("cluster.train.mem_gb=900",), None, "[Mm]emory specification"),
        (("cluster.train.partition=gpuu",), None, "[Ii]nvalid partition"),
        (("cluster.train.qos=nothing",), None, "[Ii]nvalid qos"),
    ],
    ids=["account", "time", "gres", "memory", "partition", "qos"],
)
def test_a_refused_request_is_explained_and_leaves_nothing(lab, settings, drop, error):
    refused = lab(TWO, packed=False)
    base = tuple(text for text in SETTINGS if not (drop and text.startswith(drop)))
    status, printed = refused.run("grid", *settings, base=base)
    assert status == 2
    assert re.search(f"error: cluster slurm refuses .*{error}", printed), printed
    assert "--set " in printed
    assert "Traceback" not in printed
    assert list(refused.experiment.slurm.iterdir()) == []
    assert {event["event"] for event in read_jsonl(refused.experiment.ledger)} == {"intent", "withdrawn"}
    refused.until(lambda: not refused.mine())  # what was queued before the refusal is cancelled


def test_an_array_over_the_limit_is_split_and_a_wrong_limit_is_explained(lab):
    five = lab("grid: {seeds: [0, 1, 2, 3, 4]}", packed=False, epochs=1)
    printed = five.ok("plan", "cluster.max_array=2")
    assert [int(n) for n in re.findall(r"# ---- train-\d: (\d) job", printed)] == [2, 2, 1]
    printed = five.ok("plan", "cluster.max_submit=4")
    assert re.findall(r"# ---- train-\d: (\d) job", printed) == ["2"]


def test_cells_share_a_job_side_by_side_and_one_dying_leaves_the_others(lab, tmp_path):
    (tmp_path / "w.pth").write_text("no weights")
    cells = (
        f"{{train.seed: 1}}, {{train.model: {{name: cnn2, weights: {tmp_path}/w.pth}}}}, {{train.seed: 2}}"
    )
    packed = lab(f"grid: {{cells: [{cells}]}}", epochs=2)
    printed = packed.ok(
        "grid", "cluster.cells_per_job=3", "cluster.concurrent_cells=2", "cluster.train.cpus=2"
    )
    assert "(3 cells in 1 job)" in printed
    packed.settle()
    states = sorted(row["state"] for row in packed.leaderboard().values())
    assert states == ["baseline", "baseline", "done", "done", "failed"], packed.tails()


@RESUMED
def test_where_requeue_is_forbidden_a_continuation_goes_on(lab, undisturbed):
    chain = lab(**LONG)
    chain.ok("grid", "cluster.requeue=false", "cluster.continuations=1")
    with chain.paused() as (cell,):
        first = min((job for job in chain.mine() if job != chain.job_of(cell)), key=int)
        chain.warn(first, pid_in(cell))
    chain.settle()
    assert same(chain, cell, *undisturbed), chain.tails()
    assert chain.leaderboard()[cell.name]["state"] == "done"


def test_data_is_staged_to_the_node_s_own_disk_once(lab, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    two = lab(TWO, epochs=1)
    two.environment["MY_SCRATCH"] = str(scratch)
    two.ok("grid", "cluster.scratch=[$MY_SCRATCH]")
    two.settle()
    assert {row["state"] for row in two.leaderboard().values()} == {"done", "baseline"}, two.tails()
    (staged,) = (scratch / "labelgrid").glob("drawn-*")
    assert (staged / "dataset.json").exists()
    logs = "".join(path.read_text() for path in two.experiment.slurm.glob("*_log.out"))
    assert logs.count("staged ") == 1


# ---------------------------------------------------------------- looking and steering


def test_status_logs_cancel_retry_and_prune(lab):
    two = lab(TWO, **LONG)
    two.ok("grid")
    with two.paused(count=2) as (_, cell):
        printed = two.ok("status")
        line = next(line for line in printed.splitlines() if line.startswith(cell.name))
        assert re.search(
            rf"running +\d/8 +0\.\d+ +\d+ +0\.\d+ +0:0\d:\d\d +~\d:\d\d:\d\d +{two.job_of(cell)}", line
        ), printed
        assert re.search(r"evaluate: job \d+ pending", printed)
        assert "epoch 1/8" in two.ok("logs", run="sgd")
        assert "cancelled 1 job (1 cell)" in two.ok("cancel", run="sgd")
        two.until(lambda: two.job_of(cell) not in two.mine())
        assert "still running as job" in two.run("retry", run="adam")[1]
        assert "(1 cell)" in two.ok("cancel")
    two.until(lambda: not two.mine())
    assert "moved to experiments/x/replaced/sgd" in two.ok("retry", run="sgd")
    assert not cell.exists()
    spec = two.root / "experiments" / "x.yaml"
    spec.write_text(spec.read_text().replace('"epochs": 8', '"epochs": 1'))
    two.ok("grid")
    two.settle()
    assert re.search(r"freed [1-9][\d.]* MB", two.ok("prune"))
    assert "2 cells, 0 to submit" in two.ok("grid")
    left = [
        path.name
        for cell in two.cells()
        for path in cell.glob("checkpoint_*")
        if (cell / "report.json").exists()
    ]
    assert set(left) == {"checkpoint_best.pt"}
    assert not (two.experiment.path / "replaced").exists()


def test_doctor_says_what_is_wrong(lab):
    healthy = lab(THREE)
    before = {str(path) for path in healthy.root.rglob("*")}
    printed = healthy.ok("doctor", "cluster.train.gres=gpu:v100:4", more=["--node"])
    assert "ok   slurm: answers; cluster slurmtest, arrays of up to 1000" in printed
    assert "ok   accounting: answers" in printed
    assert re.search(r"ok +a train-1 job: .*Job \d+ to start at", printed)
    assert re.search(r"ok +a final job: .*Job \d+ to start at", printed)
    assert "reserves 4 GPUs and trains 1 at once" in printed
    assert re.search(r"ok +set-up here: torch ", printed)
    assert "trying a node: a job of one minute for at most an unknown amount" in printed
    assert re.search(r"ok +set-up on a node: torch ", printed)
    made = {str(path) for path in healthy.root.rglob("*")} - before
    assert all("/data/digests" in path for path in made), made  # remembered checksums of what it read
    status, printed = healthy.run("doctor", "cluster.requeue=false", "cluster.setup=[module load nothing]")
    assert status == 1
    assert len(re.findall(r"ok +a train-1-more-\d job: .*Job \d+ to start at", printed)) == 3
    assert re.search(r"FAIL set-up here: .*module", printed), printed
    wrong = {
        "adam": "gres: 'gpu:a100:1'",
        "adadelta": "constraint: nosuch",
        "sgd": "sbatch: {reservation: none}",
    }
    rules = [f"{{when: {{train.optimizer.name: {name}}}, {asks}}}" for name, asks in wrong.items()]
    resources = f"run.resources=[{', '.join(rules)}]"
    status, printed = healthy.run("doctor", resources, "cluster.python=/no/python")
    assert status == 1
    assert re.search(r"FAIL set-up here: .*/no/python: No such file", printed), printed
    for said in ("not available", "feature", "reservation"):
        assert len(re.findall(rf"FAIL a train-\d job: .*{said}", printed, re.IGNORECASE)) == 1, printed


def test_plan_shows_the_very_scripts_that_grid_and_submission_send(lab):
    two = lab(TWO, epochs=1)

    def scripts(text):
        """What is sent, but for the numbers that only the queue gives and the letters of the one submission."""
        text = re.sub(r"(?m)^(#SBATCH --job-name=.*)-[0-9a-f]{6}$", r"\1", text)
        return re.sub(r"(?m)^(#SBATCH --dependency=)'?(after\w+:)[^'\n]*'?$", r"\1\2N", text).strip()

    for verb, more in (("grid", []), ("submission", ["--submission"])):
        held = ("cluster.train.sbatch={hold: true}",)
        printed = two.ok("plan", *held, more=more)
        planned = [part.split("\n", 1)[1] for part in printed.split("# ---- ")[1:]]
        sent_before = set(two.experiment.slurm.glob("*_submission.sh"))
        two.ok(verb, *held)
        sent = sorted(set(two.experiment.slurm.glob("*_submission.sh")) - sent_before, key=lambda p: p.name)
        assert len(sent) == len(planned) == 2 if verb == "grid" else len(planned) >= 1
        for shown, path in zip(planned, sent, strict=True):
            assert scripts(shown).startswith(scripts(path.read_text()))
        if verb == "grid":
            two.ok("cancel")
            two.settle()
    two.ok("cancel")


def test_a_forgotten_job_is_not_trusted(lab):
    old = lab(epochs=1)
    old.ok("grid")
    text = old.experiment.ledger.read_text()
    old.settle()
    for cell in old.cells():
        shutil.rmtree(cell)
    forgotten = re.sub(r'"jobs": \["(\d+)', r'"jobs": ["99\g<1>', text)
    old.experiment.ledger.write_text(re.sub(r', "crc": \d+', "", forgotten))
    printed = old.ok("grid")
    assert "is unknown to Slurm" in printed
    assert "1 to submit" in printed
    old.settle()
    assert {row["state"] for row in old.leaderboard().values()} == {"done", "baseline"}


@RESUMED
def test_the_time_limit_itself_leads_to_a_requeue(lab):
    """Slurm's own warning before a real limit, not a signal of ours."""
    timed = lab(**LONG)
    timed.ok("grid", "cluster.train.time_min=30", "cluster.signal_s=20")
    with timed.paused() as (cell,):
        job, pid = timed.job_of(cell), pid_in(cell)
        timed.slurm("scontrol", "update", f"JobId={job}", "TimeLimit=1")
        timed.until(lambda: is_signalled(pid))  # at least half a minute: Slurm counts limits in minutes
    timed.settle()
    assert timed.ends(job) == ["REQUEUED", "COMPLETED"], timed.tails()
    rows = [row["epoch"] for row in read_jsonl(cell / "metrics.jsonl") if "validation/loss" in row]
    assert rows == list(range(1, 9))


def test_cells_that_share_a_process_in_one_job_end_as_alone_and_their_mean_is_submitted(lab):
    three = "axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.1}, {name: adamw}]}"
    rest = "submission: {cells: {top: 2}}"
    shared = lab(f"grid: {{share_process: true, {three}}}\n{rest}", epochs=2, precision="fp32")
    assert "(3 cells in 1 job)" in shared.ok("submission")
    alone = lab(f"grid: {{share_process: false, {three}}}\n{rest}", epochs=2, precision="fp32")
    assert "(3 cells in 3 jobs)" in alone.ok("submission")
    for one in (shared, alone):
        one.settle()
        assert [row["state"] for row in one.leaderboard().values()].count("done") == 3, one.tails()
    for mine, theirs in zip(sorted(shared.cells()), sorted(alone.cells()), strict=True):
        assert mine.name == theirs.name
        assert same(shared, mine, alone, theirs)
    selection = Selection.read(shared.experiment)
    assert selection.picked_by == "ensemble"
    assert len(selection.cells) == 2
    assert shared.experiment.submission.read_bytes() == alone.experiment.submission.read_bytes()
