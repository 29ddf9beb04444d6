"""A real Slurm cluster for the tests in this folder, and a lab to run verbs on it."""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.models.checkpoint import load_checkpoint
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir
from tests.cells import (
    PATIENCE_S,
    clean_environment,
    epochs_of,
    is_signalled,
    packed_project,
    paused,
    project,
)
from tests.conftest import ROOT

SCRIPT = Path(__file__).parent / "cluster.sh"
SETTINGS = (
    *("cluster.account=project_2000000", "cluster.train.partition=gpu", "cluster.train.gres=gpu:v100:1"),
    *("cluster.train.cpus=1", "cluster.train.mem_gb=4", "cluster.cpu.partition=small", "cluster.cpu.cpus=1"),
)


def free_port():
    """The first of 20 ports in a row that nobody listens at: other clusters may run on this machine."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in range(21000 + 1000 * worker, 30000, 20):  # two that begin at once do not meet
        with contextlib.suppress(OSError):
            for used in range(port, port + 20):
                with socket.socket() as tried:
                    tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    tried.bind(("", used))
            return port
    raise OSError("no 20 free ports in a row between 21000 and 30000")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The environment of a running cluster; skips where none can be brought up, fails where one must be."""
    yield from _running(Path(os.environ.get("SLURM_TEST_DIR") or tmp_path_factory.mktemp("slurm")))


@pytest.fixture(scope="session")
def other_cluster(cluster, tmp_path_factory):
    """The environment of a second cluster, of another name, whose jobs have the same numbers."""
    settings = {"CT_NAME": "othertest", "CT_GPU_NODES": "1", "CT_CPU_NODES": "1"}
    yield from _running(tmp_path_factory.mktemp("other"), **settings)


def _running(folder, **settings):
    required = bool(os.environ.get("LABELGRID_REQUIRE_SLURM"))
    installed = all(
        shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") for name in ("slurmctld", "slurmdbd")
    )
    if not (installed or required or os.geteuid() == 0):
        pytest.skip("Slurm is not installed, and only root can install it")
    # a cluster that was kept (SLURM_TEST_DIR) keeps its ports
    ports = {} if "SLURM_TEST_DIR" in os.environ else {"CT_PORT": str(free_port())}
    # a MariaDB that starts removes the temporary tables of any other one in the same folder
    own = {"TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    up = subprocess.run(
        [str(SCRIPT), "up", str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | ports | own | settings,
    )
    if up.returncode:
        text = f"no Slurm cluster here: {up.stderr.strip()[-500:]}"
        pytest.fail(text) if required else pytest.skip(text)
    exports = subprocess.run(
        [str(SCRIPT), "env", str(folder)], capture_output=True, text=True, check=True
    ).stdout
    words = [word for line in exports.splitlines() for word in shlex.split(line.removeprefix("export "))]
    yield dict(word.split("=", 1) for word in words) | {"CLUSTER_FOLDER": str(folder)}
    subprocess.run([str(SCRIPT), "down", str(folder)], capture_output=True, timeout=PATIENCE_S)


class Lab:
    """One project on the cluster."""

    def __init__(self, root, environment):
        self.root = root
        self.experiment = ExperimentDir(root / "experiments" / "x")
        # python finds what it needs beside Slurm's commands; no real GPU is to be found
        self.environment = (
            clean_environment() | environment | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        )
        self.environment.pop("CUDA_VISIBLE_DEVICES")
        self.code = ROOT

    def start(self, verb, *settings, run=None, base=SETTINGS, more=()):
        arguments = [verb, "experiments/x.yaml", "--cluster", "slurm", "--set", *base, *settings]
        arguments += [*(["--run", run] if run else []), *more]
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.root,
            env=self.environment | {"PYTHONPATH": str(self.code)},
        )

    @contextlib.contextmanager
    def surrounded(self, **variables):
        """With these variables in the environment of its commands."""
        before = self.environment
        self.environment = before | variables
        try:
            yield
        finally:
            self.environment = before

    def wrapping(self, **scripts):
        """The same with commands of Slurm replaced by shell scripts, in which `real` is the real one."""
        folder = self.root / "wrapped"
        folder.mkdir(exist_ok=True)
        for name, text in scripts.items():
            real = shutil.which(name)
            (folder / name).write_text(f'#!/bin/bash\nreal() {{ {real} "$@"; }}\n{text}\n')
            (folder / name).chmod(0o755)
        return self.surrounded(PATH=f"{folder}:{self.environment['PATH']}")

    def events(self, kind):
        return [event for event in read_jsonl(self.experiment.ledger) if event["event"] == kind]

    def run(self, verb, *settings, **options):
        """(exit status, what was printed)"""
        process = self.start(verb, *settings, **options)
        printed, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, printed

    def ok(self, verb, *settings, **options):
        status, printed = self.run(verb, *settings, **options)
        assert status == 0, printed
        return printed

    def slurm(self, *command):
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def queue(self):
        return self.slurm("squeue", "-h", "-r", "-o", "%i|%j|%T|%N").splitlines()

    def mine(self):
        listed = self.slurm("squeue", "-h", "-r", "-o", "%i|%Z").splitlines()
        return [line.split("|")[0] for line in listed if str(self.root) in line]

    def settle(self, seconds=PATIENCE_S):
        """Wait until no job of this project is queued or running."""
        deadline = time.monotonic() + seconds
        while self.mine():
            assert time.monotonic() < deadline, "\n".join(self.queue()) + self.tails()
            time.sleep(0.3)

    def until(self, condition, seconds=PATIENCE_S):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "\n".join(self.queue()) + self.tails()
            time.sleep(0.05)
        return found

    def tails(self):
        logs = [*self.experiment.slurm.glob("*log.out"), *self.experiment.path.glob("*/log.txt")]
        return "".join(f"\n== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(logs))

    def leaderboard(self):
        import csv

        with self.experiment.leaderboard.open(newline="") as file:
            return {row["cell"]: row for row in csv.DictReader(file)}

    def cells(self):
        return sorted(
            path.parent for path in self.experiment.path.glob("*/spec.yaml") if path.parent.parent.name == "x"
        )

    def paused(self, name="", **options):
        """Cells of names that begin so, stopped at a moment: see `paused` in tests/cells.py."""
        return paused(self.experiment.path, name, **options)

    def warn(self, job, pid):
        """Send a job the warning of its time limit, and wait until it lies before `pid`, which takes no signal now.

        Slurm drops a signal while it does not call the job's step running yet: then it is sent again.
        """

        def sent():
            self.slurm("scancel", "--signal=USR2", job)
            again = time.monotonic() + 10
            while not (is_there := is_signalled(pid)) and time.monotonic() < again:
                time.sleep(0.05)
            return is_there

        self.until(sent)

    def ends(self, job):
        """How each start of a job ended, once accounting knows: it hears of an end later than the queue."""

        def states():
            listed = self.slurm("sacct", "-X", "-D", "-n", "-P", "-j", job, "-o", "State").splitlines()
            found = [line.split(" ")[0] for line in listed]
            return found if found and not {"PENDING", "RUNNING"} & {*found} else None

        return self.until(states)

    def epochs(self, cell):
        return epochs_of(cell)

    def job_of(self, cell):
        events = read_jsonl(self.experiment.ledger)
        return next(e["jobs"][-1] for e in reversed(events) if e.get("cell") == cell.name)

    def weights(self, cell):
        return load_checkpoint(cell / "checkpoint_last.pt")["model"]

    def state(self, cell):
        return json.loads((cell / "manifest.json").read_text())["state"]


@pytest.fixture
def lab(cluster, tmp_path, drawn_zip):
    """A maker of labs: lab(text of the spec's grid, whether its images are packed already, train settings)."""
    made = []

    def make(text="", *, packed=True, **train):
        root = tmp_path / f"p{len(made)}"
        (packed_project if packed else project)(root, drawn_zip, text, **train)
        made.append(Lab(root, cluster))
        return made[-1]

    yield make
    for each in made:
        jobs = each.mine()
        if jobs:
            subprocess.run(["scancel", *jobs], env=each.environment, capture_output=True)
