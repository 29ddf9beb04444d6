"""What ran, where, on which code: enough to say later why two results differ. Torch-free."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pydantic", "submitit", "tensorboard")
_DIFF_LIMIT = 1_000_000  # characters


def provenance() -> dict[str, Any]:
    """Host, interpreter, package versions, and the commit and uncommitted changes of this code."""
    root = Path(__file__).resolve().parent.parent
    diff = _git(root, "diff", "HEAD")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _git(root, "rev-parse", "HEAD"),
        "uncommitted": diff[:_DIFF_LIMIT] if diff else None,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "command": sys.argv,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
