"""The same on a Slurm cluster: jobs killed, cancelled, requeued and their nodes lost, until all is done."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.slurm.conftest import SCRIPT, Lab, cluster  # noqa: F401 - a fixture
from tests.torture.chain import differences, make_project, outcome

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

KILLS = int(os.environ.get("LABELGRID_SLURM_KILLS", "0"))
SEED = int(os.environ.get("LABELGRID_SEED", "0"))
PER_PROJECT = 10


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
def test_whatever_happens_to_its_jobs_the_outcome_is_the_same(cluster, tmp_path, drawn_zip):  # noqa: F811 - the fixture above
    def new(name):
        make_project(tmp_path / name, drawn_zip)
        return Lab(tmp_path / name, cluster)

    undisturbed = new("straight")
    undisturbed.ok("submission")
    undisturbed.settle()
    straight = outcome(undisturbed.root)
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
