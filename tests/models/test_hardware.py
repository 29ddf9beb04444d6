"""What is said of the machine that trains: read on this CPU, and on GPUs as torch and their drivers tell it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from pipeline.models import hardware as module
from pipeline.models.hardware import hardware
from pipeline.storage.provenance import provenance


def test_a_cpu_has_its_model():
    (name,) = hardware("cpu").values()
    cpus = module._CPUS.read_text()
    assert name in cpus or "model name" not in cpus


def test_an_arm_cpu_has_the_numbers_of_its_design(tmp_path, monkeypatch):
    cpus = tmp_path / "cpuinfo"
    cpus.write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd4f\n")
    monkeypatch.setattr(module, "_CPUS", cpus)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert hardware("cpu") == {"name": "aarch64 0x41 0xd4f"}


NVIDIA = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    "GCC version:  gcc version 11.4.0\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.65.06  Release Build\n"


@pytest.mark.parametrize(
    ("files", "versions", "expected"),
    [
        ((NVIDIA, None), {"cuda": "13.0"}, {"driver": "535.104.05", "cuda": "13.0", "cudnn": 91300}),
        ((OPEN, None), {"cuda": "12.8"}, {"driver": "580.65.06", "cuda": "12.8", "cudnn": 91300}),
        ((None, "6.10.5\n"), {"hip": "6.2.41134"}, {"driver": "6.10.5", "hip": "6.2.41134", "cudnn": 91300}),
        ((None, None), {"cuda": "12.8"}, {"cuda": "12.8", "cudnn": 91300}),
    ],
)
def test_a_gpu_has_its_name_driver_and_libraries(tmp_path, monkeypatch, files, versions, expected):
    paths = [tmp_path / "nvidia", tmp_path / "amdgpu"]
    for path, text in zip(paths, files, strict=True):
        if text is not None:
            path.write_text(text)
    monkeypatch.setattr(module, "_DRIVERS", paths)
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, versions.get(name))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=42_405_855_232)
    )
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91300)
    own = {"name": "NVIDIA A100-SXM4-40GB", "visible": 1, "memory_gb": 42.4}
    assert hardware("cuda") == own | expected


def test_provenance_has_opencv_and_the_modules_that_are_loaded(monkeypatch):
    monkeypatch.setenv("LOADEDMODULES", "gcc/13.2:pytorch/2.9")
    facts = provenance()
    assert facts["modules"] == ["gcc/13.2", "pytorch/2.9"]
    assert facts["packages"]["opencv"].startswith("5.")
    monkeypatch.setitem(
        sys.modules, "cv2", SimpleNamespace(__version__="4.12.0")
    )  # of a site, without metadata
    assert provenance()["packages"]["opencv"] == "4.12.0"
    monkeypatch.delenv("LOADEDMODULES")
    assert provenance()["modules"] == []
