"""Processes for work of this host: results in order, and none that outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.storage.processes import in_processes
from tests.cells import PATIENCE_S, clean_environment
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

_STARTER = """
import time
from pipeline.storage.processes import in_processes

for pid in in_processes(eval, [("__import__('os').getpid()",)], 1):
    print(pid, flush=True)
    time.sleep(600)
"""


def test_results_come_in_order_and_each_process_computes_in_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert list(in_processes(divmod, [(n, 3) for n in range(9)], 2)) == [divmod(n, 3) for n in range(9)]
    assert list(in_processes(os.getenv, [("OMP_NUM_THREADS",)], 2)) == ["1"]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert list(in_processes(os.getenv, [("OMP_NUM_THREADS",)], 2)) == ["1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_process_ends_with_the_one_that_started_it():
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER], stdout=subprocess.PIPE, text=True, env=clean_environment(), cwd=ROOT
    )
    worker = int(starter.stdout.readline())
    os.kill(worker, 0)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    until = time.monotonic() + PATIENCE_S
    while _runs(worker):
        assert time.monotonic() < until, "it waits for its next call for ever"
        time.sleep(0.05)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
