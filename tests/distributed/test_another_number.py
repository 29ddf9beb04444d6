"""A cell that was killed inside an epoch goes on with another number of processes: same rows, losses, weights."""

import shutil
import signal
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jobs.stages import encode
from pipeline.models.device import ExecutionConfig
from pipeline.spec import RunSpec
from pipeline.storage.run_dir import RunDir
from pipeline.training.execution import execution_of
from tests.cells import one_cell, packed_project, train_task
from tests.distributed.test_ranks import BASE, MIXED, WARPED, far, start

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks-another")]  # what is trained is shared

RECIPE = BASE | {"augment": MIXED | WARPED, "ema_epochs": 0.5, "clip_grad_norm": 0.5}
SAVED, KILLED = 7, 9  # steps, of 20 in the epoch


def begun(root, drawn_zip, ranks):
    """A project whose cell was killed in every one of its processes, two steps after a save."""
    packed_project(root, drawn_zip, **RECIPE)
    kill = {"kill": {"saved": SAVED, "killed": KILLED}}
    start(root, ranks, {"x": entry(root) | kill}, ends=-signal.SIGKILL)
    return root


def entry(root):
    cell = one_cell(root / "experiments" / "x.yaml", "run.threads=1")
    return {"task": encode(train_task(cell)), "features": str(root / "features")}


def ended(root, ranks):
    """(what each process found, what the first one printed) of the cell trained to its end."""
    said = start(root, ranks, {"x": entry(root)})
    folder = root / "experiments" / "x"
    return [torch.load(next(folder.glob(f"*/of-{ranks}/{rank}.pt"))) for rank in range(ranks)], said[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, drawn_zip):
    """What one process found, undisturbed."""
    root = tmp_path_factory.mktemp("alone")
    packed_project(root, drawn_zip, **RECIPE)
    ((found,), _) = ended(root, 1)
    return found


@pytest.fixture(scope="module")
def of_two(tmp_path_factory, drawn_zip):
    return begun(tmp_path_factory.mktemp("of") / "two", drawn_zip, 2)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory, drawn_zip):
    return begun(tmp_path_factory.mktemp("of") / "one", drawn_zip, 1)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("of_two", 1, "1 process, begun with 2"),
        ("of_two", 4, "4 processes, begun with 2"),
        ("of_one", 2, "2 processes, begun with 1"),
    ],
)
def test_it_goes_on_as_one_process_would(request, tmp_path, alone, before, after, words):
    root = shutil.copytree(request.getfixturevalue(before), tmp_path / "project")
    parts, said = ended(root, after)
    assert f"goes on with {words} (run.gpus_per_cell)" in said
    assert [part["error"] for part in parts] == [""] * after
    wanted = set(alone["train"])
    steps = [set(rows) for rows in alone["read"] if set(rows) <= wanted][SAVED:]
    shares = [[set(rows) for rows in part["read"] if set(rows) <= wanted] for part in parts]
    assert len(steps) == 20 - SAVED
    for number, rows in enumerate(steps):  # also those that pictures are mixed with, which several may read
        assert set().union(*(share[number] for share in shares)) == rows
    np.testing.assert_allclose(parts[0]["losses"], alone["losses"][SAVED:], rtol=1e-5, atol=1e-6)
    assert far(parts[0]["model"], alone["model"]) <= 1e-5
    torch.testing.assert_close(parts[0]["scores"], alone["scores"], rtol=1e-4, atol=1e-4)
    for part in parts[1:]:
        assert part["losses"] == parts[0]["losses"]
        assert far(part["model"], parts[0]["model"]) == 0


@pytest.mark.parametrize(("ranks", "threads"), [(1, 8), (4, 2)])
def test_with_another_number_threads_are_those_of_this_start(tmp_path, ranks, threads):
    """Eight threads of one process would be 32 of four, on a machine that shares out its eight cores."""
    state = SimpleNamespace(execution=asdict(ExecutionConfig("cpu", "fp32", 8)), step=3)
    group = SimpleNamespace(size=ranks, from_leader=lambda value: value)
    spec = RunSpec(device="cpu", threads=2)
    found = execution_of(spec, "fp32", state, RunDir(tmp_path), group)
    assert (found.ranks, found.threads) == (ranks, threads)
