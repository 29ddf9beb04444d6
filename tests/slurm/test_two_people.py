"""Two people, one folder: no job twice, nothing of the other's deleted, no lock that keeps the other out."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.storage.jsonl import read_jsonl
from tests.cells import PATIENCE_S
from tests.slurm.conftest import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm-shared")]

TWO = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.1}]}}"
HELD = "cluster.train.sbatch={hold: true}"
GROUP = "labelgridtest"


@pytest.fixture(scope="module")
def people(cluster):
    """The names of two users of one group who may submit."""
    if os.geteuid() != 0:
        pytest.skip("only root can make two users")
    names = ("lganna", "lgben")
    subprocess.run(["groupadd", "-f", GROUP], check=True)
    for name in names:
        if subprocess.run(["id", name], capture_output=True).returncode:
            subprocess.run(["useradd", "-g", GROUP, "-M", name], check=True)
        add = ["sacctmgr", "-i", "-Q", "add", "user", name, "account=project_2000000"]
        environment = os.environ | cluster | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        subprocess.run(add, env=environment, capture_output=True)
    yield names
    for name in names:
        subprocess.run(["userdel", name], capture_output=True)


class Person:
    """Runs verbs in a lab as a user: reads everything (python lies in root's home here), writes what is theirs."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name

    def command(self, *command, umask="022"):
        caps = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        who = ["setpriv", f"--reuid={self.name}", f"--regid={GROUP}", "--clear-groups", *caps]
        shell = ["sh", "-c", f'umask {umask}; exec "$@"', "sh"]
        environment = self.lab.environment | {"PYTHONPATH": str(self.lab.code), "HOME": "/nonexistent"}
        done = subprocess.run(
            [*who, *shell, *command],
            capture_output=True, text=True, cwd=self.lab.root, env=environment, timeout=PATIENCE_S,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def run(self, verb, *settings, run=None, **options):
        arguments = [verb, "experiments/x.yaml", "--cluster", "slurm", "--set", *SETTINGS, *settings]
        arguments += ["--run", run] if run else []
        return self.command(sys.executable, "-m", "jobs", *arguments, **options)

    def ok(self, verb, *settings, **options):
        status, printed = self.run(verb, *settings, **options)
        assert status == 0, printed
        return printed


@pytest.fixture
def two(lab, people):
    """(lab, anna, ben): a project in a folder that the group may write, as on a cluster's project disk."""
    shared = lab(TWO, epochs=1)
    subprocess.run(["chgrp", "-R", GROUP, str(shared.root)], check=True)
    subprocess.run(["chmod", "-R", "g+rwX", str(shared.root)], check=True)
    subprocess.run(["find", str(shared.root), "-type", "d", "-exec", "chmod", "g+s", "{}", "+"], check=True)
    yield shared, *(Person(shared, name) for name in people)
    for name in people:
        subprocess.run(["scancel", "-u", name], env=shared.environment, capture_output=True)


def private(cluster, hidden):
    """Turn PrivateData=jobs on or off."""
    path = Path(cluster["SLURM_CONF"])
    text = re.sub(r"PrivateData=.*\n", "", path.read_text())
    path.write_text(text + ("PrivateData=jobs\n" if hidden else ""))
    environment = os.environ | cluster | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(["scontrol", "reconfigure"], env=environment, check=True)
    deadline = time.monotonic() + PATIENCE_S
    while True:  # it answers before it has read its file
        text = subprocess.run(
            ["scontrol", "show", "config"], env=environment, capture_output=True, text=True
        ).stdout
        if ("jobs" in re.search(r"PrivateData\s*= (.*)", text)[1]) == hidden:
            return
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("hidden", [False, True], ids=["jobs are shown", "PrivateData=jobs"])
def test_a_colleague_s_jobs_are_not_submitted_twice_nor_deleted(two, cluster, hidden):
    lab, anna, ben = two
    private(cluster, hidden)
    try:
        assert "2 to submit" in anna.ok("grid", HELD)
        mine = lab.mine()
        assert len(mine) == 3
        if hidden:  # under load the queue is hidden later than the configuration says
            lab.until(lambda: not ben.command("squeue", "-h", "-u", "lganna")[1].strip())
        printed = ben.ok("status")
        # hidden ones are known where accounting has heard of them by now
        words = "of lganna, whose jobs are not shown to you|pending" if hidden else "pending"
        assert len(re.findall(words, printed)) >= 2, printed
        printed = ben.ok("grid", HELD)
        assert "2 cells, 0 to submit, 2 active" in printed, printed
        assert lab.mine() == mine
        files = {path.name for path in lab.experiment.slurm.iterdir()}
        printed = ben.ok("prune")
        assert "may still be queued: their files and the code stay" in printed, printed
        assert {path.name for path in lab.experiment.slurm.iterdir()} == files
        status, printed = ben.run("cancel")
        assert "Traceback" not in printed
        assert lab.mine() == mine
        if not hidden:
            assert status == 1
            assert "not cancelled: job " in printed
            assert "of lganna) is still pending: scancel: Kill job error on job id " in printed
        assert "2 active" in anna.ok("grid", HELD)
        assert "cancelled" in anna.ok("cancel")
        lab.until(lambda: not lab.mine())
        assert "2 to submit" in ben.ok("grid", HELD)
        assert "cancelled" in ben.ok("cancel")
    finally:
        private(cluster, False)


def test_both_write_what_one_of_them_made_whatever_their_umask(two):
    lab, anna, ben = two
    anna.ok("grid", HELD, umask="077")
    anna.ok("cancel", umask="077")
    paths = [path for path in lab.experiment.path.rglob("*") if not path.is_symlink()]
    assert [path.name for path in paths if not path.stat().st_mode & 0o020] == []
    assert "2 to submit" in ben.ok("grid", HELD, umask="077")
    users = [
        event["proof"]["user"] for event in read_jsonl(lab.experiment.ledger) if event["event"] == "submitted"
    ]
    assert set(users) == {"lganna", "lgben"}
    assert "Traceback" not in anna.ok("status")
    ben.ok("cancel")


@pytest.mark.parametrize("when", ["before sbatch", "after it"])
def test_a_ledger_that_cannot_be_written_leaves_nothing_queued(two, when):
    lab, anna, _ = two
    anna.ok("retry", run="sgd")  # which writes the ledger
    shut = f"chmod 444 {lab.experiment.ledger}"
    if when == "before sbatch":
        anna.command(*shut.split())
        status, printed = anna.run("grid")
    else:
        with lab.wrapping(sbatch=f'real "$@"; {shut}'):
            status, printed = anna.run("grid")
    assert status == 2
    assert "ledger.jsonl: cannot be written: Permission denied" in printed
    lab.until(lambda: not lab.mine())
    assert lab.events("submitted") == []
    anna.command("chmod", "644", str(lab.experiment.ledger))
    assert "2 to submit" in anna.ok("grid", HELD)
    anna.ok("cancel")


def test_a_folder_that_belongs_to_the_other_alone_is_named_without_a_traceback(two):
    lab, anna, ben = two
    anna.ok("grid", HELD)
    subprocess.run(["chmod", "-R", "g-w", str(lab.experiment.path)], check=True)
    status, printed = ben.run("grid", HELD)
    assert status == 2
    assert "Traceback" not in printed
    assert re.search(r"error: .*experiments/x.*[Pp]ermission denied", printed), printed
    anna.ok("cancel")
