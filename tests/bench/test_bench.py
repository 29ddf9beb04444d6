"""The benchmark can still be run: one section at toy size, without judging times."""

import subprocess
import sys

import pytest
from PIL import Image

from tests.cells import clean_environment
from tests.conftest import ROOT


@pytest.mark.slow
def test_a_section_of_the_benchmark_runs_at_toy_size_and_writes_nothing():
    page = (ROOT / "docs" / "performance.md").read_text()
    command = [
        sys.executable,
        "tests/bench/bench.py",
        "--smoke",
        "--only",
        "wrangle",
        "labels",
        "step",
        "growth",
    ]
    environment = {k: v for k, v in clean_environment().items() if k != "LABELGRID_SHARED"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "| ratio (goal 1.3 x) |" in done.stdout
    assert "| `list_csv` |" in done.stdout
    assert "| cnn3, of the step alone" in done.stdout
    assert "| bootstrap of a cell | K (N 60) | 4, 8 |" in done.stdout
    assert "| 4,000 x 20 | a training until its first batch |" in done.stdout
    assert (ROOT / "docs" / "performance.md").read_text() == page


def test_the_tables_of_cpus_name_no_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    import bench
    import measure
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    assert measure.environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert "the CPU alone" in bench.hardware()
    assert "NVIDIA" not in bench.hardware()


def test_an_exponent_is_the_slope_of_the_logarithms(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    import on_growth

    assert on_growth.exponent([(10, 3.0), (40, 12.0), (160, 48.0)]) == pytest.approx(1)
    assert on_growth.exponent([(10, 3.0), (20, 12.0)]) == pytest.approx(2)


def test_figures_with_a_goal_are_kept_tabled_and_drawn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    import headlines

    monkeypatch.setattr(headlines, "KEPT", tmp_path / "performance.json")
    monkeypatch.setattr(headlines, "PICTURE", tmp_path / "performance.webp")
    before = {"plan": headlines.Headline(0.6, 0.3, "s", True)}
    monkeypatch.setattr(headlines, "last_release", lambda: ("v1", before))
    monkeypatch.setattr(headlines, "measured", {})
    headlines.headline("plan", [0.2, 0.25, 0.4], 0.3, unit="s", at_most=True)
    headlines.keep()
    headlines.measured.clear()
    headlines.headline("training", headlines.against([30, 20, 10], [10, 10, 10]), 2.3)
    table = headlines.keep().splitlines()  # what was measured in an earlier run stays
    assert table[0] == "| what | goal | measured |  | at v1 |"
    assert "| plan | <= 0.3 s | 0.25 s | met | 0.6 s |" in table
    assert "| training | >= 2.3 x | 2 x | missed |  |" in table
    with Image.open(tmp_path / "performance.webp") as picture:
        assert picture.width == 800
