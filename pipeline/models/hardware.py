"""What a cell is trained on, for its provenance: the GPU and what torch drives it with, or the CPU."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import torch

# first lines that name the version of a driver: NVIDIA's among other words, AMD's alone
_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))
_CPUS = Path("/proc/cpuinfo")


def hardware(device: str) -> dict[str, Any]:
    """Of `cpu` or `cuda`: its name; of a GPU also how many there are, the driver, and torch's CUDA or HIP and cuDNN."""
    if device == "cpu":
        return {"name": _cpu()}
    built: Any = torch.version
    facts = {
        "name": torch.cuda.get_device_name(),
        "visible": torch.cuda.device_count(),
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
        "driver": _driver(),
        "cuda": built.cuda,
        "hip": getattr(built, "hip", None),
        "cudnn": torch.backends.cudnn.version(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _driver() -> str | None:
    for path in _DRIVERS:
        if found := re.search(r"\b\d+\.\d+(?:\.\d+)*\b", _text(path).partition("\n")[0]):
            return found[0]
    return None


def _cpu() -> str:
    """Its model; Arm's Linux names none, so its architecture and the numbers of its design."""
    text = _text(_CPUS)
    if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return found[1].strip()
    numbers = [re.search(rf"^CPU {what}\s*:\s*(\S+)", text, re.MULTILINE) for what in ("implementer", "part")]
    return " ".join([platform.machine(), *(found[1] for found in numbers if found)])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
