"""`make demo`, whole: what it prints and how well the best cell sees drawings it never saw."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.cells import PATIENCE_S, clean_environment, jobs, one_cell, project
from tests.conftest import ROOT


def start_demo(folder):
    """`make demo` in a project of its own."""
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "experiments").mkdir()
    shutil.copy(ROOT / "experiments" / "demo.yaml", folder / "experiments")
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=clean_environment() | {"PYTHONPATH": str(folder)},
    )


def test_its_first_line_comes_before_anything_that_takes_time(tmp_path):
    """Told by what is imported at that moment: a clock would tell how busy the machine is."""
    script = (
        "import builtins, sys; from jobs.cli import main\n"
        "def first(*texts, **how):\n"
        "    slow = {'torch', 'numpy', 'pydantic', 'PIL', 'subprocess'} & {*sys.modules}\n"
        "    sys.stderr.write(texts[0] + '|' + ' '.join(slow))\n"
        "    raise SystemExit(7)\n"
        "builtins.print = first; main(['demo'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=clean_environment()
    )
    assert (done.returncode, done.stderr) == (
        7,
        "demo: pictures are drawn and packed, four cells are trained and ranked|",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_stopped_demo_says_how_to_go_on_and_points_at_nothing_else(tmp_path):
    process = start_demo(tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob("experiments/demo/*/manifest.json")):  # a cell has begun
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "goes on from here" in printed
    assert "report" not in printed
    assert "Type next" not in printed


@pytest.mark.slow
def test_the_demo_learns_far_beyond_the_prior_and_says_what_to_type_next(tmp_path):
    process = start_demo(tmp_path)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    with (tmp_path / "experiments/demo/leaderboard.csv").open(newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file)}
    cells = [float(row["f1_micro"]) for row in rows.values() if row["state"] == "done"]
    prior = float(rows["baseline-prior"]["f1_micro"])
    assert len(cells) == 4
    assert max(cells) > 3 * prior
    held_out = float(re.search(r"true labels of these images are known: f1_micro ([\d.]+)", printed)[1])
    assert held_out > 3 * prior
    for verb in re.findall(r"^  make (\w+)", printed, re.M):
        assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.M)
    assert "experiments/demo/report.html" in printed


def write_epochs(path, epochs):
    rows = [
        {
            "step": 10 * n,
            "epoch": n,
            "train/loss": 0.5,
            "train/seconds_per_step": 6.0,
            "train/images_per_s": 99.0,
        }
        | {"validation/loss": 0.4, "validation/map_macro": 0.7 - n / 100, "best_epoch": 1, "best_value": 0.69}
        for n in range(1, epochs + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_status_knows_cells_that_run_here_and_how_long_they_take(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip, epochs=5)
    cell = one_cell(spec)
    write_epochs(cell.run.metrics, 3)
    assert f"{cell.run.name} missing" in jobs("status", spec, cwd=tmp_path)[1]
    with cell.run.owned():
        status, printed = jobs("status", spec, cwd=tmp_path)
    assert status == 0
    assert re.search(
        rf"{cell.run.name} running 3/5 +0.6900 +1 +0.6700 .*~0:02:00 .*process {os.getpid()} on ", printed
    )
    assert "1 running; leaderboard not up to date" in printed
