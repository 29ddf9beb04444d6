"""What ran, where, on which code: enough to say later why two results differ. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "pydantic", "submitit", "tensorboard")
# OpenCV comes under four names, and from a site's own module under none
_OPENCV = [f"opencv-{kind}python{end}" for kind in ("", "contrib-") for end in ("-headless", "")]
_DIFF_LIMIT = 1_000_000  # characters
_ROOT = Path(__file__).resolve().parents[2]
CODE_FILE = "code.json"  # of a snapshot, inside the package


def provenance() -> dict[str, Any]:
    """Host, interpreter, package versions, loaded modules, and the code: digest, commit, uncommitted changes."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES} | {"opencv": _opencv()},
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        "code": code(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "command": sys.argv,
    }


def code() -> dict[str, Any]:
    """Digest of the code of this project, and git's commit and diff where there is a checkout.

    Code that runs from a snapshot (`jobs/local/snapshot.py`) carries what was true when that was made.
    """
    try:
        stored = pkgutil.get_data("pipeline", CODE_FILE)
    except OSError:
        stored = None
    if stored is not None:
        found: dict[str, Any] = json.loads(stored)
        return found
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes())
    diff = _git("diff", "HEAD")
    return {
        "digest": digest.hexdigest(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": diff[:_DIFF_LIMIT] if diff else None,
    }


def code_files() -> list[Path]:
    """The files a job needs, of this checkout."""
    found = [path for package in ("pipeline", "jobs") for path in (_ROOT / package).rglob("*.*")]
    return sorted(path for path in found if path.suffix in (".py", ".tsv", ".css", ".js", ".html"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _opencv() -> str | None:
    loaded = getattr(sys.modules.get("cv2"), "__version__", None)
    return str(loaded) if loaded else next(filter(None, map(_version, _OPENCV)), None)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
