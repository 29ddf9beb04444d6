"""Running one cell in a process of its own, as the backends do."""

import json
import os
import subprocess
import sys

from jobs.planning.plan import make_plan
from jobs.stages import TrainTask, encode
from pipeline.spec.reading import Loaded, read_spec
from tests.conftest import ROOT


def project(tmp_path, drawn_zip, text="", name="x", **train):
    """A project folder with one spec on the drawn set; `text` is appended to the spec."""
    folder = tmp_path / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"image_px": 32, "epochs": 2, "batch_size": 16, **train}
    (folder / f"{name}.yaml").write_text(
        f"data:\n  source: {drawn_zip.train}\n  images: images/im{{id}}.jpg\n  size_px: 32\n"
        f"  test: {{source: {drawn_zip.test}, images: 'images/im{{id}}.jpg', labels: {{format: id_lists}}}}\n"
        f"train: {json.dumps(settings)}\n{text}\n"
    )
    return folder / f"{name}.yaml"


def jobs(*arguments, cwd, **environment):
    """`python -m jobs ...` as a user runs it, in `cwd`."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean_environment(), **environment},
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def clean_environment():
    dropped = ("LABELGRID_CLUSTER", "CUDA_VISIBLE_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    return environment | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def one_cell(spec_path, *overrides):
    """The only cell of a spec, its folder ready to train."""
    loaded: Loaded = read_spec(spec_path, overrides)
    (cell,) = make_plan(loaded).cells
    cell.run.path.mkdir(parents=True, exist_ok=True)
    return cell


def train_task(cell):
    """What trains it."""
    data = (cell.data.packed, cell.data.split)
    return TrainTask(cell.run, cell.cell.spec, cell.identity, *data, cell.run.path / "weights")


def start(cell):
    """Its training process; its output goes to the cell's log."""
    with cell.run.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.stages"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**clean_environment(), "OMP_NUM_THREADS": "1"},
        )
    process.stdin.write(encode(train_task(cell)).encode())
    process.stdin.flush()
    return process


def finish(process):
    """Its exit status."""
    try:
        return process.wait(timeout=200)
    finally:
        process.stdin.close()
