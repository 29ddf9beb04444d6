"""What users would run instead, each in an environment of its own beside ours."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from measure import ROOT, SHARED, Timing, once

_FASTAI = (
    "fastai fastcore fastdownload fastprogress fasttransform plum-dispatch beartype matplotlib pandas scipy "
    "scikit-learn pytz python-dateutil six tzdata contourpy cycler fonttools kiwisolver pyparsing threadpoolctl "
    "joblib cloudpickle rich requests urllib3 idna certifi charset-normalizer"
)
# script -> what pip installs for it on top of our torch, a call each; fastai pins an older torch: without its word
PACKAGES: dict[str, list[str]] = {
    "seed_style": [],
    "lightning_peer": ["lightning torchmetrics"],
    "timm_peer": ["timm"],
    "hf_trainer": ["transformers accelerate"],
    "fastai_peer": [f"--no-deps {_FASTAI}", "python-fasthtml"],
}


def python_of(peer: str) -> Path | None:
    """Its interpreter, made where it is missing; None where its packages cannot be had."""
    folder = ROOT / "data" / "bench-envs" / peer
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        inside = f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        ours = [entry for entry in sys.path if entry.endswith("site-packages")] or [
            sysconfig.get_path("purelib")
        ]
        (folder / "lib" / inside / "ours.pth").write_text("\n".join(ours) + "\n")
    if not (folder / ".ready").exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if any(subprocess.run([*pip, *packages.split()]).returncode for packages in PACKAGES[peer]):
            return None
    (folder / ".ready").touch()
    return python


def run(peer: str, data: Path, timing: Timing, *options: str) -> dict:
    """Run a peer once on a labelled folder; what it says of itself."""
    assert SHARED is not None
    script = SHARED / "bench" / "peers" / f"{peer}.py"
    once([str(python_of(peer)), "-W", "ignore", str(script), "--root", str(data), *options], data, timing)
    return json.loads(next(line for line in reversed(timing.printed.splitlines()) if line.startswith("{")))
