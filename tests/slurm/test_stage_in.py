"""The copy of a packed set on a node's disk: what it holds, what is left when it breaks off, where features go."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.planning.plan import make_plan
from jobs.slurm import job as job_module
from jobs.slurm.job import CellJob
from jobs.slurm.stage_in import stage_in
from pipeline.data.packed import PackedSet
from pipeline.spec.reading import read_spec
from tests.cells import packed_project, run_here, train_task

SCRATCH = ["$LOCAL_SCRATCH"]


@pytest.fixture
def packed(drawn, tmp_path, monkeypatch):
    """A packed set of one's own, which has kept features and a split beside it."""
    monkeypatch.setenv("LOCAL_SCRATCH", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    folder = tmp_path / "packed" / "photos-32px-12345678"
    shutil.copytree(drawn[1], folder, ignore=shutil.ignore_patterns("features"))  # those of other tests
    (folder / "features").mkdir()
    (folder / "features" / "kept.npz").write_bytes(bytes(10**6))
    return folder


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_staged_copy_that_a_purge_has_thinned_out_is_made_anew(packed, tmp_path, capsys):
    staged = stage_in(packed, SCRATCH)
    assert staged.parent == tmp_path / "node" / "labelgrid"
    assert stage_in(packed, SCRATCH) == staged
    assert capsys.readouterr().out.count("staged ") == 1
    (staged / "split-of-others.json").touch()  # nothing of the set: other jobs read on undisturbed
    assert stage_in(packed, SCRATCH) == staged
    assert capsys.readouterr().out == ""
    (staged / "images-000.npy").unlink()
    (staged / "labels.npy").write_bytes(b"")
    stage_in(packed, SCRATCH)
    assert capsys.readouterr().out.count("staged ") == 1
    PackedSet.open(staged, verify=True)


def test_only_the_set_itself_is_copied(packed):
    staged = stage_in(packed, SCRATCH)
    PackedSet.open(staged, verify=True)
    assert not (staged / "features").exists()
    assert not list(staged.glob("split-*"))


def test_only_the_set_itself_needs_room(packed, monkeypatch, capsys):
    size = sum(path.stat().st_size for path in packed.iterdir() if path.is_file())
    disk = namedtuple("disk", "free")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: disk(1.2 * size)
    )  # and not for a megabyte of features
    assert stage_in(packed, SCRATCH) != packed
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0.5 * size))
    shutil.rmtree(stage_in(packed, SCRATCH))
    assert stage_in(packed, SCRATCH) == packed
    assert "no room for 0.0 GB; reading " in capsys.readouterr().out


def test_a_copy_for_which_the_disk_is_too_small_leaves_nothing(packed, tmp_path, monkeypatch, capsys):
    copy = shutil.copyfile

    def full(source, target):
        if source.name == "labels.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    assert stage_in(packed, SCRATCH) == packed
    assert "cannot hold the data ([Errno 28] No space left on device); reading " in capsys.readouterr().err
    assert files(tmp_path / "node" / "labelgrid") == [f".{packed.name}.lock"]


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_copy_left_is_removed_by_the_next(packed, tmp_path, monkeypatch, locks):
    folder = tmp_path / "node" / "labelgrid"
    folder.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getppid()):
        (folder / f".{packed.name}.{process}").mkdir()
        (folder / f".{packed.name}.{process}" / "images-000.npy").touch()
    (folder / f".another-set.{dead.pid}").mkdir()
    if not locks:
        monkeypatch.setattr(
            fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks"))
        )
    stage_in(packed, SCRATCH)
    running = [] if locks else [f".{packed.name}.{os.getppid()}"]  # who has the lock knows that nobody copies
    left = [f".another-set.{dead.pid}", f".{packed.name}.lock", packed.name, *running]
    assert files(folder) == sorted(left)


def test_a_set_that_cannot_be_read_is_left_to_who_opens_it(packed):
    (packed / "dataset.json").write_text("{}")
    assert stage_in(packed, SCRATCH) == packed


def test_a_job_keeps_features_in_the_shared_folder(tmp_path, drawn_zip, monkeypatch):
    monkeypatch.setenv("LOCAL_SCRATCH", str(tmp_path / "node"))
    plan = make_plan(read_spec(packed_project(tmp_path, drawn_zip, "grid: {seeds: [1, 2]}")))
    given = []

    def run_jobs(work, *_, **__):
        given.extend(cell.task for one in work for cell in one.reported)
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "run_jobs", run_jobs)
    tasks = tuple(map(train_task, plan.cells))
    with pytest.raises(KeyboardInterrupt):
        CellJob(tasks, 2, 2, "cpu", tuple(SCRATCH), requeue=False, grace_s=1.0)()
    assert [task.packed for task in given] == [tmp_path / "node" / "labelgrid" / tasks[0].packed.name] * 2
    assert [task.features for task in given] == [tasks[0].packed / "features"] * 2


def test_a_task_hands_the_folder_of_features_to_its_cell(tmp_path, drawn_zip, monkeypatch):
    from pipeline.training import loop

    plan = make_plan(read_spec(packed_project(tmp_path, drawn_zip)))
    (cell,) = plan.cells
    cell.run.path.mkdir(parents=True)
    task = train_task(cell)
    found = []

    def train(learners, _):
        for learner in learners:
            found.append(learner.data.features)
            learner.tracker.close()

    monkeypatch.setattr(loop, "train", train)
    run_here(task)
    run_here(replace(task, features=Path("shared/features")))
    assert found == [None, Path("shared/features")]
