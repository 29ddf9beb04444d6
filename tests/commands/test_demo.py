"""`make demo`, whole: what it prints and how well the best cell sees drawings it never saw."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cells import PATIENCE_S, clean_environment, jobs, one_cell, paused, project
from tests.conftest import ROOT

EPOCHS = 3  # of the 8 that it has: they are enough to learn what is asked for below


@pytest.fixture
def demo(tmp_path):
    """Starts `make demo` in a project of its own, with fewer epochs."""
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "experiments").mkdir()
    text, count = re.subn(r"\bepochs: 8\b", f"epochs: {EPOCHS}", (ROOT / "experiments/demo.yaml").read_text())
    assert count == 1
    (tmp_path / "experiments" / "demo.yaml").write_text(text)
    return lambda: subprocess.Popen(
        [sys.executable, "-m", "jobs", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": str(tmp_path)},
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
def test_a_stopped_demo_goes_on_learns_far_beyond_the_prior_and_says_what_to_type_next(demo, tmp_path):
    process = demo()
    with paused(tmp_path / "experiments" / "demo", when=Path.exists):  # a cell has begun
        process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "goes on from here" in printed
    assert "report" not in printed
    assert "Type next" not in printed

    process = demo()
    printed, _ = process.communicate(timeout=2 * PATIENCE_S)
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
