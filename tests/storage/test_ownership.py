"""One owner of a run folder: dead ones are told from live and paused ones, on this host and on others."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from pipeline.errors import PipelineError, TrainingError
from pipeline.storage import ownership
from pipeline.storage.ownership import _identity, check_owned, owned, owned_in_turn
from tests.cells import PATIENCE_S, clean_environment


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ownership, "BEAT_S", 0.05)
    monkeypatch.setattr(ownership, "STALE_S", 0.6)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def foreign(folder, **changes):
    """A lock as a process on another host leaves it."""
    identity = _identity() | {"host": "r02c99", "place": "another boot", "token": "theirs", **changes}
    (folder / ".lock").write_text(json.dumps(identity | {"beat": 4}))


def process(folder, then, **environment):
    """Another process of this host that owns `folder`, says so, and does `then`."""
    code = f"""
        import sys, time
        from pathlib import Path
        from pipeline.storage import ownership
        ownership.BEAT_S, ownership.STALE_S = 0.05, 0.6
        folder = Path({str(folder)!r})
        with ownership.owned(folder):
            print("owns", flush=True)
            {then}
    """
    started = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment() | environment,
    )
    line = started.stdout.readline()
    while "owns" not in line and line:
        line = started.stdout.readline()
    return started


def end(started):
    started.kill()
    started.communicate()


def test_a_live_owner_is_named_and_the_lock_goes_with_it(tmp_path):
    started = process(tmp_path, "sys.stdin.read()")
    with (
        pytest.raises(TrainingError, match=rf"process {started.pid} on .* works on this cell already"),
        owned(tmp_path),
    ):
        pass
    started.communicate("")
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path):
        check_owned(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_paused_owner_of_this_host_is_no_dead_one(tmp_path):
    started = process(tmp_path, "time.sleep(600)")
    started.send_signal(signal.SIGSTOP)
    with pytest.raises(TrainingError, match="works on this cell already"), owned(tmp_path):
        pass
    end(started)


def test_a_killed_owner_of_this_host_is_followed_at_once(tmp_path, capsys):
    started = process(tmp_path, "time.sleep(600)")
    end(started)
    assert (tmp_path / ".lock").exists()
    with owned(tmp_path):
        pass
    assert "waiting" not in capsys.readouterr().out  # for no heartbeat


def test_a_pid_that_was_given_out_again_is_not_its_owner(tmp_path):
    with owned(tmp_path):
        body = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps(body | {"started": "1", "token": "old"}))
    with owned(tmp_path):  # the pid lives: it is ours
        pass


def test_another_host_without_a_heartbeat_is_believed_dead_after_watching_it(tmp_path, capsys):
    foreign(tmp_path, job="77")
    with owned(tmp_path):
        check_owned(tmp_path)
    assert "process" in (said := capsys.readouterr().out)
    assert "on r02c99 (Slurm job 77) may still be running; waiting 0.6 s for its heartbeat" in said


def test_another_host_that_beats_is_left_alone_whatever_its_clock_says(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "STALE_S", PATIENCE_S)  # a beat may come late on a busy machine
    foreign(tmp_path)
    os.utime(tmp_path / ".lock", (1, 1))
    ended = threading.Event()

    content = json.loads((tmp_path / ".lock").read_text())

    def keep_beating():
        count = 0
        while not ended.wait(0.05):
            count += 1
            (tmp_path / ".lock").write_text(json.dumps(content | {"beat": count}))

    beating = threading.Thread(target=keep_beating)
    beating.start()
    try:
        with pytest.raises(TrainingError, match=r"on r02c99 works on this cell already"), owned(tmp_path):
            pass
    finally:
        ended.set()
        beating.join()


def test_a_requeued_job_follows_itself_at_once_and_an_older_start_of_it_watches(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ownership, "STALE_S", 1e9)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    foreign(tmp_path, job="12", restart=1)
    with owned(tmp_path):
        pass
    monkeypatch.setattr(ownership, "STALE_S", 0.6)
    foreign(tmp_path, job="12", restart=3)
    with owned(tmp_path):
        pass
    assert "waiting 0.6 s" in capsys.readouterr().out


@pytest.mark.parametrize("body", ["", "{", "[]", "process 4 on an older version", '{"token": 1}'])
def test_a_lock_that_says_nothing_is_watched_too(tmp_path, body):
    (tmp_path / ".lock").write_text(body)
    with owned(tmp_path):
        pass


def test_an_owner_that_lost_its_lock_finds_out_before_it_writes(tmp_path):
    """Paused so long that another host took it for dead, then let on."""
    started = process(
        tmp_path, "sys.stdin.readline(); ownership.check_owned(folder); print('wrote', flush=True)"
    )
    started.send_signal(signal.SIGSTOP)
    (tmp_path / ".lock").unlink()
    foreign(tmp_path, job="13")
    started.send_signal(signal.SIGCONT)
    said, _ = started.communicate("go\n")
    assert "wrote" not in said
    assert "on r02c99 (Slurm job 13) has taken this cell over while this process was paused" in said
    assert json.loads((tmp_path / ".lock").read_text())["token"] == "theirs"  # and is not touched


def test_of_many_that_find_a_dead_owner_one_gets_it(tmp_path):
    foreign(tmp_path)
    code = f"""
        import os, time
        from pathlib import Path
        from pipeline.storage import ownership
        from pipeline.errors import TrainingError
        ownership.BEAT_S, ownership.STALE_S = 0.05, 0.6
        folder = Path({str(tmp_path)!r})
        try:
            with ownership.owned(folder):
                (folder / f"{{os.getpid()}}.owner").touch()
                while not (folder / "released").exists():
                    time.sleep(0.01)
                ownership.check_owned(folder)
        except TrainingError as error:
            print(error)
    """
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        for _ in range(6)
    ]
    deadline = time.monotonic() + PATIENCE_S
    while sum(rival.poll() is not None for rival in rivals) < 5:
        assert time.monotonic() < deadline, "more than one took it"
        time.sleep(0.01)
    (tmp_path / "released").touch()
    said = [rival.communicate()[0] for rival in rivals]
    assert all(rival.returncode == 0 for rival in rivals), said
    assert sum("works on this cell already" in text for text in said) == 5
    assert len(list(tmp_path.glob("*.owner"))) == 1


def test_no_flock_is_needed(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr("fcntl.lockf", no_locks)
    with owned(tmp_path), pytest.raises(TrainingError, match="works on this cell already"), owned(tmp_path):
        pass


def test_who_waits_for_a_lock_gets_it_in_turn_without_flock(tmp_path, monkeypatch, capsys):
    import fcntl

    def refused(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    path, order = tmp_path / ".submission.lock", []

    def second():
        with owned_in_turn(path, "a submission"):
            order.append("second")

    with owned_in_turn(path, "a submission"):
        waiting = threading.Thread(target=second)
        waiting.start()
        deadline = time.monotonic() + PATIENCE_S
        while "waiting: " not in capsys.readouterr().out:
            assert time.monotonic() < deadline, "it does not say that it waits"
            time.sleep(0.01)
        order.append("first")
    waiting.join(timeout=PATIENCE_S)
    assert order == ["first", "second"]
    assert not path.exists()
    with owned_in_turn(path, "a submission"):
        again = owned_in_turn(path, "a submission", wait_s=0)
        with pytest.raises(TrainingError, match="works on a submission already"):
            again.__enter__()


def test_a_full_disk_leaves_no_lock_that_others_would_wait_for(tmp_path, monkeypatch):
    def full(self, beat):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(ownership._Lock, "_write", full)
        with pytest.raises(PipelineError, match="Disk quota exceeded"), owned(tmp_path):
            pytest.fail("taken")
    assert list(tmp_path.iterdir()) == []
