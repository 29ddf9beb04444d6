"""Labelgrid without its training packages: an environment that has only what predicting needs."""

import configparser
import os
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PREDICT = """
import io, json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from pipeline.predictor import Predictor

model = Predictor.load(sys.argv[1], device="cpu")
found = {name: one.to_dict() for name, one in model.folder(sys.argv[2])}
model.export(sys.argv[3])
absent = [name for name in ("cv2", "tensorboard", "matplotlib", "submitit", "onnx") if name in sys.modules]
print(json.dumps([absent, found, model(np.zeros((9, 9, 3), np.uint8)).scores]))
"""


def closure(names):
    """These packages and all that they need, by name."""
    found, left = set(), [Requirement(name).name for name in names]
    while left:
        name = left.pop().lower()
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                left.append(needed.name)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The environment of an interpreter that finds nothing but the packages `pip install labelgrid` brings."""
    folder = tmp_path_factory.mktemp("site")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    names = setup["options"]["install_requires"].split()
    assert len(names) == 6
    for name in closure(names):
        one = distribution(name)
        tops = {line.partition("/")[0].partition(",")[0] for line in one.read_text("RECORD").splitlines()}
        for top in tops - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(one.locate_file(top)))
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}


def python(base, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-S", "-s", *map(str, arguments)],
        env=base,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_picture_is_predicted_as_with_all_packages(base, finished, drawn_zip, tmp_path):
    import json

    from pipeline.predictor import Predictor

    status, printed, errors = python(
        base, "-c", PREDICT, finished, drawn_zip.test, tmp_path / "m.pt2", cwd=tmp_path
    )
    assert status == 0, errors
    absent, found, _ = json.loads(printed.splitlines()[-1])
    assert absent == []
    assert (tmp_path / "m.pt2").exists()
    model = Predictor.load(finished, device="cpu")
    wanted = {name: one.to_dict() for name, one in model.folder(drawn_zip.test)}
    assert {name: one["labels"] for name, one in found.items()} == {
        n: one["labels"] for n, one in wanted.items()
    }
    for name, one in found.items():
        assert one["scores"] == pytest.approx(wanted[name]["scores"], abs=1e-6)


def test_training_says_which_packages_it_needs(base, tmp_path):
    (tmp_path / "x.yaml").write_text("data: {source: x.zip}\n")
    status, _, errors = python(base, "-m", "jobs", "grid", "x.yaml", cwd=tmp_path)
    assert status == 2
    assert (
        "cv2, tensorboard, matplotlib, submitit not found: this install only predicts; pip install" in errors
    )
