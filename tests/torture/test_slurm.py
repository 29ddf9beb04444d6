"""The same on a Slurm cluster: jobs killed, cancelled, requeued and their nodes lost, until all is done."""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.storage.jsonl import read_jsonl
from tests.slurm.conftest import SCRIPT, Lab, cluster  # noqa: F401 - a fixture
from tests.torture.chain import differences, make_project, outcome

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

KILLS = int(os.environ.get("LABELGRID_SLURM_KILLS", "0"))
DAEMON_KILLS = int(os.environ.get("LABELGRID_DAEMON_KILLS", "0"))
SEED = int(os.environ.get("LABELGRID_SEED", "0"))
PER_PROJECT = 10


@pytest.fixture
def projects(cluster, tmp_path, drawn_zip):  # noqa: F811 - the fixture above
    """(a maker of labs by name, the outcome of one that nobody disturbed)"""

    def new(name):
        make_project(tmp_path / name, drawn_zip)
        return Lab(tmp_path / name, cluster)

    undisturbed = new("straight")
    undisturbed.ok("submission")
    undisturbed.settle()
    return new, outcome(undisturbed.root)


def processes(lab):
    """(pid, what runs) of every python process in this project's jobs."""
    jobs = {job.split("_")[0] for job in lab.mine()}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            known = dict(part.split(b"=", 1) for part in environment if b"=" in part)
            job = known.get(b"SLURM_ARRAY_JOB_ID", known.get(b"SLURM_JOB_ID", b"")).decode()
            if job in jobs and "python" in command and "srun" not in command:
                found.append(int(entry.name))
    return found


def disturb(lab, rng, kind, folder):
    """One disturbance of what runs now; False where nothing did."""
    victims = processes(lab)
    running = [line for line in lab.queue() if "|RUNNING|" in line and line.split("|")[0] in lab.mine()]
    if not victims or not running:
        return False
    job, _, _, node = rng.choice(running).split("|")
    if kind == "kill":
        for victim in [rng.choice(victims)] if rng.random() < 0.5 else victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    elif kind == "cancel":
        subprocess.run(["scancel", job], env=lab.environment, capture_output=True)
    elif kind == "warn":
        subprocess.run(["scancel", "--signal=USR2", job], env=lab.environment, capture_output=True)
    else:
        subprocess.run([str(SCRIPT), "node-fail", node, folder], capture_output=True)
        lab.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=torture")
        time.sleep(1)
        subprocess.run([str(SCRIPT), "node-start", node, folder], capture_output=True)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], env=lab.environment)
    return True


@pytest.mark.skipif(not KILLS, reason="LABELGRID_SLURM_KILLS is not set: `make torture` sets it")
def test_whatever_happens_to_its_jobs_the_outcome_is_the_same(cluster, projects):  # noqa: F811 - the fixture above
    new, straight = projects
    rng, hits, project = random.Random(SEED), Counter(), 0
    while hits.total() < KILLS:
        lab = new(f"p{project}")
        # a cell that crashed three times under one code is held back for a person: so many kills are too many
        kinds = ["kill"] * 2 + rng.choices(["cancel", "warn", "node"], k=PER_PROJECT - 2)
        rng.shuffle(kinds)
        for kind in kinds:
            lab.run("submission")
            lab.until(lambda lab=lab: processes(lab) or not lab.mine())
            time.sleep(rng.uniform(0, 6))
            if disturb(lab, rng, kind, cluster["CLUSTER_FOLDER"]):
                hits[kind] += 1
            time.sleep(rng.uniform(0, 2))
        lab.settle()
        for _ in range(3):
            lab.run("submission")
            lab.settle()
        assert differences(straight, outcome(lab.root)) == [], lab.tails()
        project += 1
    print(f"\n{hits.total()} disturbances in {project} projects survived: {dict(hits)}")


# ---------------------------------------------------------------- Slurm itself


def kill_daemon(cluster, name, rng):  # noqa: F811 - the fixture's value
    """Kill slurmctld or slurmdbd; it comes back some seconds later."""
    folder = Path(cluster["CLUSTER_FOLDER"])
    with contextlib.suppress(ProcessLookupError):  # the last kill is not mended yet
        os.kill(int((folder / "run" / f"{name}.pid").read_text()), signal.SIGKILL)
    time.sleep(rng.uniform(0.5, 6))
    configuration = (folder / "etc" / "slurm.conf").read_text()
    port = int(re.search(r"SlurmctldPort=(\d+)", configuration)[1]) - 1
    environment = os.environ | {"CT_PORT": str(port), "TMPDIR": str(folder / "tmp")}
    done = subprocess.run([str(SCRIPT), "up", str(folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def settle(lab, most=0):
    """Wait until no more than `most` jobs of the project are queued or running.

    A controller that was killed has forgotten its last seconds, and takes what has ended since for running until
    its nodes report again. Administrators make them report with `scontrol reconfigure`, and a user repeats the
    command, which releases what Slurm could not start again.
    """
    deadline, asked = time.monotonic() + 600, time.monotonic()
    while len({job.split("_")[0] for job in lab.mine()}) > most:
        assert time.monotonic() < deadline, "\n".join(lab.queue())
        if time.monotonic() - asked > 20:
            subprocess.run(["scontrol", "reconfigure"], env=lab.environment, capture_output=True)
            lab.run("submission")
            asked = time.monotonic()
        time.sleep(0.3)


def unknown_jobs(lab):
    """Jobs of this project that Slurm has started or queued, and the ledger does not know."""
    events = read_jsonl(lab.experiment.ledger)
    known = {event["proof"]["name"] for event in events if event["event"] == "submitted"}
    listed = lab.slurm(
        "sacct", "-X", "-a", "-n", "-P", "-S", "now-1day", "-o", "JobID,State,ElapsedRaw,JobName,WorkDir"
    )
    rows = [line.split("|", 4) for line in listed.splitlines()]
    return [
        row[:4]
        for row in rows
        if str(lab.root) in row[4] and row[3] not in known and not row[1].startswith("CANCELLED")
    ]


@pytest.mark.skipif(not DAEMON_KILLS, reason="LABELGRID_DAEMON_KILLS is not set: `make torture` sets it")
def test_whatever_happens_to_slurm_itself_no_job_is_unknown_and_nothing_lost(cluster, projects):  # noqa: F811
    new, straight = projects
    rng, hits, project = random.Random(SEED), Counter(), 0
    while hits.total() < DAEMON_KILLS:
        lab = new(f"d{project}")
        for _ in range(5):
            when = rng.choice(["submission", "run", "final"])
            daemon = rng.choice(["slurmctld", "slurmdbd"])
            process = lab.start("submission")
            if when == "submission":
                time.sleep(rng.uniform(0.5, 4))
            else:
                process.wait(timeout=600)
                if when == "final":
                    settle(lab, most=1)
                time.sleep(rng.uniform(0, 4))
            kill_daemon(cluster, daemon, rng)
            printed, _ = process.communicate(timeout=600)
            assert "Traceback" not in printed, printed
            hits[f"{daemon} in {when}"] += 1
        for _ in range(3):
            settle(lab)
            lab.run("submission")
        settle(lab)
        assert unknown_jobs(lab) == [], lab.experiment.ledger.read_text()
        assert differences(straight, outcome(lab.root)) == [], lab.tails()
        project += 1
    print(f"\n{hits.total()} daemons killed in {project} projects: {dict(hits)}")
