"""Slurm's commands: the name of the cluster, patience, the environment, warnings of a job to itself. No cluster."""

import os
import signal
import time
from dataclasses import replace

import pytest

from jobs.slurm import commands
from jobs.slurm.commands import SlurmSilentError, ask, foreign_options, own_environment, this_cluster
from jobs.slurm.endings import ENDING
from jobs.slurm.job import _warn_at
from jobs.slurm.queue import ended, states
from jobs.slurm.records import (
    Proof,
    Submitted,
    completed,
    open_intents,
    proof_of,
    submitted_jobs,
    this_user,
)
from pipeline.errors import LaunchError
from tests.cells import PATIENCE_S

PROOF = Proof("here", "labelgrid-x-train-1-abc123", "me", "/x/slurm")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A maker of commands: there is no cluster here, and a real one does not fail on demand."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(commands, "_CONFIGURATIONS", (str(tmp_path / "slurm.conf"),))

    def make(name, text):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    return make


def test_the_cluster_s_name_is_asked_and_else_read(command, tmp_path, monkeypatch):
    command(
        "scontrol", "echo 'ClusterName = hill'; echo 'PrivateData = accounts,jobs'; echo 'MaxArraySize = 501'"
    )
    assert this_cluster() == commands.Cluster("hill", hides_jobs=True, max_array=500)
    command("scontrol", "echo 'ClusterName = hill'; echo 'PrivateData = none'")
    assert not this_cluster().hides_jobs
    command("scontrol", "echo 'scontrol: error: no such thing' >&2; exit 1")
    with pytest.raises(
        SlurmSilentError, match=r"the name of this cluster is not known \(scontrol: no such thing\)"
    ):
        this_cluster()
    (tmp_path / "slurm.conf").write_text("# of a site\nclustername=valley\n")
    assert this_cluster() == commands.Cluster("valley", hides_jobs=True)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "of_the_job")
    assert this_cluster().name == "of_the_job"
    monkeypatch.setenv("SLURM_CLUSTERS", "a,b")
    with pytest.raises(LaunchError, match=r"SLURM_CLUSTERS=a,b means several clusters"):
        this_cluster()


def test_only_what_may_pass_is_asked_again(command, tmp_path):
    count = f"echo x >> {tmp_path}/count; n=$(wc -l < {tmp_path}/count)"
    command("squeue", f'{count}; [ $n -gt 2 ] && echo fine && exit; echo "Socket timed out" >&2; exit 1')
    assert ask("squeue") == "fine\n"
    command("squeue", f'{count}; echo "squeue: error: Invalid user" >&2; exit 1')
    with pytest.raises(SlurmSilentError, match=r"^squeue: Invalid user$"):
        ask("squeue")
    assert (tmp_path / "count").read_text().count("x") == 4
    with pytest.raises(SlurmSilentError, match=r"sprint: not found; is this a Slurm login node"):
        ask("sprint")


def test_options_in_disguise_are_dropped_and_put_back(command, monkeypatch):
    given = {
        "SBATCH_QOS": "q",
        "SLURM_JOB_ID": "7",
        "SCANCEL_STATE": "R",
        "SQUEUE_SORT": "i",
        "SRUN_DEBUG": "1",
    }
    kept = {"SLURM_CONF": "/c", "SLURM_CLUSTERS": "one", "SLURMISH": "x", "LABELGRID_ACCOUNT": "p"}
    for name, value in (given | kept).items():
        monkeypatch.setenv(name, value)
    command("squeue", "env")
    assert foreign_options(os.environ).items() >= given.items()
    shown = dict(line.split("=", 1) for line in ask("squeue").splitlines() if "=" in line)
    assert shown.items() >= kept.items()
    assert not given.keys() & shown.keys()
    with own_environment():
        assert not given.keys() & os.environ.keys()
        assert os.environ.items() >= kept.items()
    assert os.environ.items() >= given.items()


def test_a_job_warns_itself_before_its_limit(monkeypatch):
    came = []
    before = signal.signal(signal.SIGUSR2, lambda *_: came.append(time.time()))
    try:
        monkeypatch.setenv("LABELGRID_BEGAN", str(time.time() - 100))  # its shell began long before Python
        _warn_at(0)
        later = _warn_at(100 + PATIENCE_S)
        assert 0 < later.interval <= PATIENCE_S
        _warn_at(99)
        deadline = time.monotonic() + PATIENCE_S
        while not came and time.monotonic() < deadline:
            time.sleep(0.01)
        later.cancel()
        assert len(came) == 1
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_an_intent_stays_open_until_it_is_completed_or_withdrawn():
    lines = [{"cell": "a", "task": 0}, {"cell": "b", "task": 1}]
    intent = {"event": "intent", "proof": PROOF.__dict__, "lines": lines}
    assert [proof for proof, _ in open_intents([intent])] == [PROOF]
    done = completed(lines, PROOF, "12")
    assert [(event["cell"], event["jobs"]) for event in done] == [("a", ["12_0"]), ("b", ["12_1"])]
    assert [job.job for event in done for job in submitted_jobs(event)] == ["12_0", "12_1"]
    assert open_intents([intent, *done]) == []
    assert open_intents([intent, {"event": "withdrawn", "names": [PROOF.name]}]) == []
    renamed = Proof("here", "site-name", "me", "/x/slurm")
    assert open_intents([intent, *completed(lines, renamed, "12", PROOF.name)]) == []


@pytest.mark.parametrize("proof", [None, {}, {"name": "n"}, "text", {**PROOF.__dict__, "more": 1}, 7])
def test_a_line_without_a_whole_proof_proves_nothing(proof):
    event = {"event": "submitted", "cell": "a", "jobs": ["12"], "proof": proof}
    assert proof_of(event) is None
    assert submitted_jobs(event) == []


def ours(number, **changes):
    return Submitted(number, replace(PROOF, **{"user": this_user(), **changes}))


def answering(command, *, squeue="", sacct="", private=False):
    """Commands that answer so; None: with an error."""
    command("scontrol", f"echo 'ClusterName = here'; echo 'PrivateData = {'jobs' if private else 'none'}'")
    for name, text in (("squeue", squeue), ("sacct", sacct)):
        command(name, "exit 1" if text is None else f"cat <<'END'\n{text}END")


def test_what_the_queue_does_not_list_is_ending_whatever_accounting_says(command):
    me, end = this_user(), f"here|{PROOF.name}|{PROOF.folder}\n"
    answering(command, sacct=f"7|{me}|RUNNING|None|9|n1|0:0|{end}8|{me}|FAILED|None|9|n1|1:0|{end}")
    states_of = states([ours("7"), ours("8"), ours("9")]).states
    assert (states_of[ours("7")].state, states_of[ours("7")].is_ending) == (ENDING, True)
    assert states_of[ours("8")].crashed
    assert ours("9") not in states_of, "forgotten: it has ended"
    assert ended([ours("7"), ours("8"), ours("9")]) == {ours("8"), ours("9")}
    queue = f"7|{me}|FAILED|NonZeroExitCode|0:09|n1|{PROOF.name}|{PROOF.folder}\n"
    answering(command, squeue=queue, sacct=f"7|{me}|RUNNING|None|9|n1|0:0|{end}")
    assert (found := states([ours("7")]).states[ours("7")]).crashed, found
    assert found.ending == "failed"


@pytest.mark.parametrize(("private", "seen"), [(True, True), (False, False)])
def test_a_colleague_s_job_that_is_not_listed_may_be_hidden(command, private, seen):
    answering(command, private=private)
    theirs = ours("7", user="anna")
    answers = states([theirs, ours("8")])
    assert (theirs in answers.states) == seen
    assert not answers.blind
    assert ended([theirs]) == (set() if seen else {theirs})
    if seen:
        assert answers.states[theirs].reason == "job 7 of anna, whose jobs are not shown to you"


@pytest.mark.parametrize(("sacct", "silent"), [(None, True), ("", False)])
def test_without_the_queue_nothing_of_ours_counts_as_ended(command, sacct, silent):
    answering(command, squeue=None, sacct=sacct)
    answers = states([ours("7")])
    assert answers.states[ours("7")].active
    assert (answers.blind, answers.silent) == (True, silent)
    assert any("squeue" in note for note in answers.notes)
    assert ended([ours("7")]) == set()


def test_a_job_of_another_cluster_is_neither_found_nor_ended(command):
    end = f"here|{PROOF.name}|{PROOF.folder}\n"
    answering(
        command, squeue=f"7|{this_user()}|RUNNING|None|0:09|n1|{PROOF.name}|{PROOF.folder}\n", sacct=end
    )
    there = ours("7", cluster="there")
    assert states([there]).states == {}
    assert ended([there]) == set()
    assert states([ours("7")]).states[ours("7")].nodes == "n1"


@pytest.mark.parametrize("wrong", ["name", "user", "folder"])
def test_each_part_of_the_proof_is_needed(command, wrong):
    line = f"7|{this_user()}|RUNNING|None|0:09|n1|{PROOF.name}|{PROOF.folder}\n"
    answering(command, squeue=line)
    assert states([ours("7")]).states
    assert states([ours("7", **{wrong: "other"})]).states == {}
