"""`make bench-gpu` can still be run: every section at toy size, without a GPU and without judging times."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.cells import clean_environment
from tests.conftest import ROOT

HERE = ROOT / "tests" / "bench"
TITLES = (
    "Pictures of the CPU against those of the CPU by the GPU's functions",
    "Scores of one checkpoint on both devices",
    "A cell that was begun on a CPU",
    "cnn2 at 32 px",
    "Variants of the loop",
    "Augmentation alone",
    "Features of the frozen part",
    "Busy share",
    "Out of GPU memory",
    "Killed by SIGKILL and resumed",
    "2 optimizers x 2 epochs",
    "The grid with the small batch",
    "run.compile",
    "What was checked",
)


@pytest.mark.slow
def test_every_section_runs_at_toy_size_and_writes_nothing():
    page = (ROOT / "docs" / "performance.md").read_text()
    environment = {k: v for k, v in clean_environment().items() if k != "LABELGRID_SHARED"}
    command = [sys.executable, "tests/bench/gpu.py", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    for title in TITLES:
        assert f"**{title}" in done.stdout, title
    assert "goal" not in done.stdout
    assert (ROOT / "docs" / "performance.md").read_text() == page


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import gpu

    return gpu


def test_without_a_gpu_it_says_so_and_measures_nothing(gpu, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "no GPU is found" in capsys.readouterr().err


def test_its_processes_get_the_gpu_that_those_of_cpus_do_not(gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpu._gpu()["CUDA_VISIBLE_DEVICES"] == "3"
    assert gpu.environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_goals_are_those_of_the_gpu(gpu):
    figures = {"loop 256": [9000.0, 9100.0, 9200.0], "ratio 256": [0.95], "validation 256": [26000.0]}
    figures["grid 256"] = [130.0]
    h100 = gpu.goals("NVIDIA H100 80GB HBM3", figures, 400).splitlines()[2:]
    assert [row.split("|")[-2].strip() for row in h100] == ["met", "missed", "met", "missed", "met"]
    assert ">= 8,500 | 9,100" in h100[0]
    h200 = gpu.goals("NVIDIA H200", figures, 500).splitlines()[2:]
    assert [row.split("|")[-2].strip() for row in h200] == ["missed", "missed", "met", "missed", "missed"]
    other = gpu.goals("NVIDIA A100", {}, 400).splitlines()[2:]
    assert "not measured" in other[0]
    assert "none for this GPU" in gpu.goals("NVIDIA A100", figures, 400)


def test_what_overlaps_is_busy_once(gpu):
    import gpu_busy

    spans = [(0, 10), (5, 10), (30, 5), (31, 1), (40, 2)]
    events = [{"ts": start * 1e6, "dur": seconds * 1e6} for start, seconds in spans]
    assert gpu_busy.busy_seconds(events) == pytest.approx(15 + 5 + 2)
    names = {
        "sm90_xmma_fprop_implicit_gemm": "convolutions and matrix products",
        "bn_fw_tr_1C11": "batch norm",
    }
    for name, kind in names.items():
        assert gpu_busy._kind({"cat": "kernel", "name": name}) == kind


def test_memory_is_taken_until_a_step_does_not_fit_and_given_back(gpu, monkeypatch):
    """With a GPU of 1,000 bytes, on which a step needs 400 beside the 100 that stay."""
    import gpu_memory
    import torch

    shortage = gpu_memory.Shortage(lambda *_: False)

    def free():
        return 900 - sum(each.size for each in shortage._ballast)

    monkeypatch.setattr(gpu_memory, "device", lambda: "cuda")
    for name, value in (("memory_allocated", 100), ("max_memory_allocated", 500)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("reset_peak_memory_stats", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free(), 1000))
    monkeypatch.setattr(torch, "empty", lambda size, **_: SimpleNamespace(size=size))
    shortage._backward = lambda *_: "loss" if free() >= 400 or one.tried else None
    one = SimpleNamespace(step=0, tried=False)
    for step in range(4):
        one.step = step
        found = shortage.backward(one, None, [])
    assert (found, shortage.tries, shortage.step, shortage.need, shortage.leave) == (None, 1, 3, 400, 350)
    assert free() == 350
    one.tried = True  # the pixels went
    assert shortage.backward(one, None, []) == "loss"
    assert shortage.over
    assert free() == 900
