"""`make demo`, whole: what it prints and how well the best cell sees drawings it never saw."""

import csv
import re
import shutil
import subprocess
import sys

from jobs.progress import Progress
from tests.cells import clean_environment
from tests.conftest import ROOT


def test_the_demo_learns_far_beyond_the_prior_and_says_what_to_type_next(tmp_path):
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "experiments").mkdir()
    shutil.copy(ROOT / "experiments" / "demo.yaml", tmp_path / "experiments")
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "demo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": str(tmp_path)},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "experiments/demo/leaderboard.csv").open(newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file)}
    cells = [float(row["f1_micro"]) for row in rows.values() if row["state"] == "done"]
    prior = float(rows["baseline-prior"]["f1_micro"])
    assert len(cells) == 4
    assert max(cells) > 3 * prior
    held_out = float(re.search(r"truth of these images is known: f1_micro ([\d.]+)", done.stdout)[1])
    assert held_out > 3 * prior
    for verb in re.findall(r"^  make (\w+)", done.stdout, re.M):
        assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.M)
    assert "experiments/demo/report.html" in done.stdout


class Terminal:
    """Collects what a terminal would be sent."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_wrangle_has_a_bar_in_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.progress._REFRESH_S", 0)
    monkeypatch.setenv("COLUMNS", "120")
    log = tmp_path / "wrangle.txt"
    log.write_text("1000/4000 images, 900 images/s\n")
    terminal = Terminal()
    progress = Progress("stages", 1, out=terminal)
    progress.started("wrangle photos", log, 0)
    progress.tick()
    assert "[######..................] 1000/4000" in terminal.text
