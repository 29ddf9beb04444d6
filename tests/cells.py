"""Projects on the drawn set, and what runs verbs and cells: in this process, or in processes of their own.

A process costs seconds of imports, so a test starts one only where the process itself matters: it is killed,
its imports are looked at, or two must work at the same time.
"""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.planning.plan import make_plan
from jobs.stages import TrainTask, encode
from pipeline.spec.reading import Loaded, read_spec
from pipeline.storage.jsonl import read_jsonl
from tests.conftest import ROOT

# How long a test waits for what must come. Only one that fails waits so long: the machine may be busy.
PATIENCE_S = 400


def project(tmp_path, drawn_zip, text="", name="x", **train):
    """A project folder with one spec on the drawn set; `text` is appended to the spec."""
    folder = tmp_path / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"image_px": 32, "epochs": 2, "batch_size": 16, **train}
    (folder / f"{name}.yaml").write_text(
        f"data:\n  source: {drawn_zip.train}\n  images: images/im{{id}}.jpg\n  size_px: 32\n"
        f"  test: {{source: {drawn_zip.test}, images: 'images/im{{id}}.jpg', labels: {{format: id_lists}}}}\n"
        f"train: {json.dumps(settings)}\n{text}\n"
    )
    return folder / f"{name}.yaml"


def packed_project(root, drawn_zip, text="", **train):
    """A project whose images are packed and split already: a copy of what was packed once."""
    spec = project(root, drawn_zip, text, **train)
    shutil.copytree(drawn_zip.train.parent / "data" / "packed", root / "data" / "packed")
    return spec


def jobs(*arguments, cwd, **environment):
    """(exit status, what was printed) of `python -m jobs ...` in `cwd`, run in this process."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as redirected:
        patch.chdir(cwd)
        patch.delenv("LABELGRID_CLUSTER", raising=False)
        for name, value in {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}.items():
            patch.setenv(name, value)
        redirected.enter_context(contextlib.redirect_stdout(printed))
        redirected.enter_context(contextlib.redirect_stderr(printed))
        status = main([*map(str, arguments)])
    return status, printed.getvalue()


def jobs_process(*arguments, cwd, **environment):
    """The same as a user runs it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean_environment(), **environment},
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout + done.stderr


def clean_environment():
    dropped = ("LABELGRID_CLUSTER", "CUDA_VISIBLE_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    return environment | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def one_cell(spec_path, *overrides):
    """The only cell of a spec, its folder ready to train."""
    loaded: Loaded = read_spec(spec_path, overrides)
    (cell,) = make_plan(loaded).cells
    cell.run.path.mkdir(parents=True, exist_ok=True)
    return cell


def train_task(cell):
    """What trains it."""
    data = (cell.data.packed, cell.data.split)
    code = cell.code and cell.code.freeze(cell.run.path.parent / "code")
    return TrainTask(cell.run, cell.cell.spec, cell.identity, *data, cell.run.path / "weights", code=code)


def start(cell):
    """Its training process; its output goes to the cell's log."""
    with cell.run.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.stages"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**clean_environment(), "OMP_NUM_THREADS": "1"},
        )
    process.stdin.write(encode(train_task(cell)).encode())
    process.stdin.flush()
    return process


def run_here(task, log=None):
    """The exit status of a task in this process; what it prints goes to `log`."""
    import torch  # seconds, which pytest's own process saves where workers run the tests

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    handlers, threads = {number: signal.getsignal(number) for number in numbers}, torch.get_num_threads()
    try:
        with contextlib.ExitStack() as redirected:
            if log is not None:
                file = redirected.enter_context(log.open("a"))
                redirected.enter_context(contextlib.redirect_stdout(file))
                redirected.enter_context(contextlib.redirect_stderr(file))
            return task()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)


def train(cell):
    """The exit status of its training in this process; what it prints goes to the cell's log."""
    return run_here(train_task(cell), cell.run.log)


def finish(process):
    """Its exit status."""
    try:
        return process.wait(timeout=PATIENCE_S)
    finally:
        process.stdin.close()


# ---------------------------------------------------------------- standing still at the right moment


def epochs_of(cell):
    """How many epochs a cell's folder tells of."""
    return sum("validation/loss" in row for row in read_jsonl(cell / "metrics.jsonl"))


def saved_step(cell, identity):
    """The step a cell's folder would be gone on from, 0 for none; read again only where a file has changed."""
    paths = cell / "checkpoint_last.pt", cell / "checkpoint_previous.pt"
    return _newest_step(paths, identity, tuple(path.exists() and path.stat().st_mtime_ns for path in paths))


@functools.lru_cache(maxsize=1)
def _newest_step(paths, identity, _changed):
    from pipeline.models.checkpoint import load_newest  # torch

    state, _ = load_newest(*paths, identity)
    return state["step"] if state else 0


def pid_in(cell):
    """The number of the process that works in a cell's folder; None where none does."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # it is being written
        return json.loads((cell / ".lock").read_text())["pid"]
    return None


def send(pid, number):
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _status(pid, field):
    """What /proc says of a process; empty where it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return re.search(rf"^{field}:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]
    return ""


def is_signalled(pid):
    """Whether a signal lies before a process that stands still or blocks it; also of one that is gone."""
    return _status(pid, "State") in ("", "Z") or int(_status(pid, "ShdPnd") or "1", 16) != 0


@contextlib.contextmanager
def paused(results, name="", *, count=1, when=lambda cell: epochs_of(cell) >= 2):
    """Stop the processes of `count` cells of names that begin so, each once `when(cell)`, until the block ends.

    What the block does to cells never comes too late, however slow this machine is: `when` holds all the while.
    """
    stopped, deadline = {}, time.monotonic() + PATIENCE_S
    try:
        while len(stopped) < count:
            assert time.monotonic() < deadline, "too few cells came so far, or they went on too fast"
            for cell in {path.parent for path in results.glob(f"{name}*/.lock")} - stopped.keys():
                if (pid := pid_in(cell)) and when(cell):
                    send(pid, signal.SIGSTOP)
                    while _status(pid, "State") not in ("T", "Z", ""):
                        time.sleep(0.001)
                    if when(cell):
                        stopped[cell] = pid
                    else:
                        send(pid, signal.SIGCONT)
            time.sleep(0.02)
        yield tuple(sorted(stopped))
    finally:
        for pid in stopped.values():
            send(pid, signal.SIGCONT)
