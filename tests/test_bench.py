"""The benchmark can still be run: one section at toy size, without judging times."""

import subprocess
import sys

from tests.cells import clean_environment
from tests.conftest import ROOT


def test_a_section_of_the_benchmark_runs_at_toy_size_and_writes_nothing():
    page = (ROOT / "docs" / "performance.md").read_text()
    command = [sys.executable, "tests/bench/bench.py", "--smoke", "--only", "wrangle", "step"]
    environment = {k: v for k, v in clean_environment().items() if k != "LABELGRID_SHARED"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "| ratio (goal 1.3 x) |" in done.stdout
    assert "| cnn3, of the step alone" in done.stdout
    assert (ROOT / "docs" / "performance.md").read_text() == page
