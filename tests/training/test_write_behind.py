"""Saving beside a GPU: the steps go on while a state is written, and what is written is the same."""

import threading

from jobs.stages import EXIT_FAILED
from pipeline.models import checkpoint
from pipeline.storage.files import atomic_write
from pipeline.storage.write_behind import Writer
from pipeline.training.learner import Learner
from tests.cells import one_cell, packed_project, train
from tests.training.test_training import OFTEN

RECIPE = {"optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}, "ema_epochs": 0.5, "epochs": 2}


def behind(monkeypatch):
    """As beside a GPU."""
    monkeypatch.setattr("pipeline.training.learner.Writer", lambda **_: Writer(behind=True))


def test_steps_go_on_while_a_state_is_written(tmp_path, drawn_zip, monkeypatch):
    """The disk is as slow as the next step: nothing would go on if it were waited for."""
    behind(monkeypatch)
    stepped, waited, record = threading.Event(), [], Learner.record_step

    def recorded(learner, *arguments):
        record(learner, *arguments)
        stepped.set()

    def slow(path, **options):
        if path.name == "checkpoint_last.pt" and len(waited) < 2:
            stepped.clear()
            waited.append(stepped.wait(60))
        return atomic_write(path, **options)

    monkeypatch.setattr(Learner, "record_step", recorded)
    monkeypatch.setattr(checkpoint, "atomic_write", slow)
    cell = one_cell(packed_project(tmp_path, drawn_zip, **RECIPE), *OFTEN)
    assert train(cell) == 0, cell.run.log.read_text()
    assert waited == [True, True]


def test_the_files_are_those_of_a_run_that_waits(tmp_path, drawn_zip, monkeypatch):
    """The weights change in place after a save, and what is written must not."""
    results = []
    for name in ("waits", "behind"):
        if name == "behind":
            behind(monkeypatch)
        cell = one_cell(packed_project(tmp_path / name, drawn_zip, **RECIPE), *OFTEN)
        assert train(cell) == 0, cell.run.log.read_text()
        run = cell.run
        results.append([path.read_bytes() for path in (run.checkpoint_best, run.scores_val)])
        states = [checkpoint.load_checkpoint(p) for p in (run.checkpoint_previous, run.checkpoint_last)]
        results[-1] += [{k: v for k, v in flat(s).items() if "metrics" not in k} for s in states]
    assert results[0] == results[1]


def flat(value, name=""):
    """Leaves by path; tensors as lists, so that they compare by value."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}").items()}
    if isinstance(value, list):
        return flat(dict(enumerate(value)), name)
    return {name: value.tolist() if hasattr(value, "tolist") else value}


def test_a_disk_that_is_full_ends_the_cell_and_not_its_last_good_state(tmp_path, drawn_zip, monkeypatch):
    behind(monkeypatch)
    writes = []

    def full(path, **options):
        writes.append(path.name)
        if len(writes) == 6:
            raise OSError(28, "No space left on device", str(path))
        return atomic_write(path, **options)

    monkeypatch.setattr(checkpoint, "atomic_write", full)
    cell = one_cell(packed_project(tmp_path, drawn_zip, **RECIPE), *OFTEN)
    assert train(cell) == EXIT_FAILED
    assert "No space left on device" in cell.run.read_manifest()["error"]
    assert checkpoint.load_checkpoint(cell.run.checkpoint_last)["step"] > 0
    assert len(writes) <= 7
