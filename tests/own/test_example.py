"""The example of docs/extending.md, as it stands there, in a project of its own beside no checkout."""

import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from jobs.stages import encode
from pipeline.models.checkpoint import load_checkpoint
from pipeline.predictor import Predictor
from pipeline.storage.provenance import code_files
from tests.cells import PATIENCE_S, clean_environment, jobs, one_cell, train, train_task
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(
    re.findall(r"^`([\w/]+\.(?:py|yaml))`(?: in `experiments/`)?:\n\n```\w+\n(.*?)^```", TEXT, re.S | re.M)
)
FILES["experiments/own.yaml"] = FILES.pop("own.yaml")
EVERY_STEP = ("run.save_every_min=1e-9", "run.save_fraction=1e9")
# the kernel ends the process at a step: nothing is saved on the way out
KILLED = """
import os, signal, sys
from jobs.stages.__main__ import main
from pipeline.training.learner import Learner
record = Learner.record_step
def until(self, *arguments):
    record(self, *arguments)
    if self.step == 17:
        os.kill(os.getpid(), signal.SIGKILL)
Learner.record_step = until
sys.exit(main())
"""


def project(root, drawn_zip):
    """The files of the page, and the data they speak of, packed already."""
    data = (
        f"source: {drawn_zip.train}\nimages: images/im{{id}}.jpg\nsize_px: 32\n"
        f"test: {{source: {drawn_zip.test}, images: 'images/im{{id}}.jpg', labels: {{format: id_lists}}}}\n"
    )
    for name, text in {**FILES, "experiments/data/photos.yaml": data}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    shutil.copytree(drawn_zip.train.parent / "data" / "packed", root / "data" / "packed")
    return root / "experiments" / "own.yaml"


def product():
    return {path: path.stat().st_mtime_ns for path in code_files()}


def test_the_page_has_the_files_it_speaks_of():
    assert list(FILES) == ["mylab/nets.py", "mylab/losses.py", "mylab/changes.py", "experiments/own.yaml"]


@pytest.mark.slow
def test_it_trains_is_killed_resumed_with_the_same_bits_and_predicted(tmp_path, drawn_zip):
    before = product()
    undisturbed = one_cell(project(tmp_path / "a", drawn_zip))
    assert train(undisturbed) == 0
    spec = project(tmp_path / "b", drawn_zip)
    cell = one_cell(spec, *EVERY_STEP)
    assert cell.identity == undisturbed.identity
    killed = subprocess.Popen(
        [sys.executable, "-P", "-c", KILLED],
        stdin=subprocess.PIPE,
        cwd=tmp_path,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"},
    )
    killed.stdin.write(encode(train_task(cell)).encode())
    killed.stdin.flush()
    assert killed.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    killed.stdin.close()
    assert load_checkpoint(cell.run.checkpoint_last)["step"] == 16
    status, printed = jobs("submission", spec, cwd=tmp_path / "b")
    assert status == 0, printed
    one, other = (load_checkpoint(each.run.checkpoint_last)["model"] for each in (undisturbed, cell))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert len((spec.parent / "own" / "submission.csv").read_text().splitlines()) == 41

    shutil.copytree(spec.parent / "own", tmp_path / "elsewhere")  # without mylab
    shutil.rmtree(tmp_path / "b" / "mylab")
    model = Predictor.load(tmp_path / "elsewhere", device="cpu")
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    found = model(picture)
    assert model.embeddings(picture).shape == (1, 16)
    exported = torch.export.load(model.export(tmp_path / "model.pt2")).module()
    scores, _ = exported(torch.from_numpy(picture)[None])
    np.testing.assert_allclose(scores[0].detach(), [*found.scores.values()], atol=5e-3)  # bf16 and fp32
    assert product() == before
    assert not [path for path in ROOT.rglob("mylab") if ".git" not in path.parts]
