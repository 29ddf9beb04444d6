"""Packed sets that somebody needs stay, whoever it is; the others go, after they were listed."""

import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from jobs import ledger
from jobs.planning.plan import make_plan
from jobs.planning.tasks import train_task
from pipeline.data.contents import contents_path
from pipeline.spec.reading import dump, read_spec
from pipeline.storage.files import write_json
from pipeline.storage.ownership import owned
from pipeline.storage.run_dir import RunDir
from tests.cells import jobs
from tests.conftest import jpeg, write_zip


@pytest.fixture(scope="session")
def template(once):
    """The project of `root` with its sets packed at three sizes."""

    def make(folder):
        write_project(folder)
        for size_px in (16, 24, 32):
            settings = ("--set", f"data.size_px={size_px}")
            status, printed = jobs("wrangle", folder / "experiments" / "x.yaml", *settings, cwd=folder)
            assert status == 0, printed

    return once("prune", make)


@pytest.fixture
def root(tmp_path, template):
    """A project of photos.zip and test.zip with one spec, `x`, and nothing packed."""
    write_project(tmp_path)
    (tmp_path / "template").symlink_to(template)
    return tmp_path


def write_project(tmp_path):
    for name, seeds in (("photos", range(1, 13)), ("test", range(100, 104))):
        files = {f"im{i}.jpg": jpeg(i, size=(20, 16)) for i in seeds}
        files["annotations/dog.txt"] = "".join(f"{i}\n" for i in seeds)
        write_zip(tmp_path / f"{name}.zip", files)
    spec_file(tmp_path, "x")


def spec_file(root, name, size_px=16, extra=""):
    path = root / "experiments" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"data:\n  source: photos.zip\n  images: im{{id}}.jpg\n  size_px: {size_px}\n"
        "  test: {source: test.zip, images: 'im{id}.jpg', labels: {format: id_lists}}\n"
        f"train: {{image_px: 16, epochs: 1, model: {{name: cnn2}}}}\n{extra}\n"
    )
    return path


def plan_of(root, *overrides, name="x"):
    return make_plan(read_spec(root / "experiments" / f"{name}.yaml", overrides))


def pack(root, size_px):
    """Both sets of x at this size, which need not be packed anew; their names."""
    names = names_of(root, size_px)
    for name in names:
        shutil.copytree(root / "template" / "data" / "packed" / name, root / "data" / "packed" / name)
    return names_of(root, size_px)  # planned with the sets there, as any verb would


def names_of(root, size_px):
    plan = plan_of(root, f"data.size_px={size_px}")
    return {plan.datasets[0].packed.name, *(test.packed.name for test in plan.tests.values())}


def prune(root, expected_status=0):
    """(the names of the sets that are left, what was printed)"""
    status, printed = jobs("prune", root / "experiments" / "x.yaml", cwd=root)
    assert status == expected_status, printed
    return {path.name for path in (root / "data" / "packed").iterdir()}, printed


def started_cell(root, size_px):
    """A cell of x at that size, as far as a process has made its folder."""
    plan = plan_of(root, f"data.size_px={size_px}")
    run = plan.cells[0].run
    run.path.mkdir(parents=True)
    return plan, run


def test_a_set_that_nobody_needs_goes_after_all_were_listed(root):
    needed, orphans = pack(root, 16), pack(root, 24)
    digests = {plan_of(root, "data.size_px=24").datasets[0].packed_digest}
    left, printed = prune(root)
    assert left == needed
    assert "data/packed: 4 packed sets, 0.1 MB\n" in printed
    for name in orphans:
        assert f"  {name.ljust(20)} " in printed
    assert printed.count("  goes: needed by nobody") == 2
    assert printed.count("  stays: needed by the given spec and 1 more") == 2
    assert "freed 0.0 MB in data/packed" in printed
    assert printed.index("goes: needed by nobody") < printed.index("in data/packed\n")
    assert not [d for d in digests if contents_path(root / "data" / "digests", d).exists()]
    assert prune(root)[0] == needed


def test_the_sets_of_other_specs_stay(root):
    needed = pack(root, 16) | pack(root, 24)
    other = spec_file(root, "other", 24)
    left, printed = prune(root)
    assert left == needed
    assert "stays: needed by experiments/other.yaml" in printed
    other.unlink()
    assert prune(root)[0] == names_of(root, 16)


def test_the_sets_of_a_spec_that_cannot_be_read_stay_by_their_source(root):
    needed = pack(root, 16) | pack(root, 24)
    other = spec_file(root, "other", 24, extra="trian: {}")
    left, printed = prune(root)
    assert left == needed
    assert "experiments/other.yaml (which cannot be read)" in printed
    other.write_text("data: {source: 'another set.zip'}\ntrian: {}\n")
    assert prune(root)[0] == names_of(root, 16)


@pytest.mark.parametrize(
    "text", ["{", "data: {source: $PHOTOS}\ntrian: {}\n", "data: experiments/gone.yaml\n"]
)
def test_where_a_spec_may_mean_any_set_all_stay(root, text):
    needed = pack(root, 16) | pack(root, 24)
    (root / "experiments" / "other.yaml").write_text(text)
    assert prune(root)[0] == needed


def test_the_sets_of_a_spec_whose_source_is_gone_stay(root):
    needed = pack(root, 16) | pack(root, 24)
    spec_file(root, "other", 24)
    for path in (root / "data" / "digests").glob("last-*.json"):
        path.unlink()
    (root / "photos.zip").rename(root / "elsewhere.zip")
    x = root / "experiments" / "x.yaml"
    x.write_text(x.read_text().replace("photos.zip", "elsewhere.zip"))
    left, printed = prune(root)
    assert left == needed, printed


def test_what_a_cell_was_trained_on_and_has_predicted_stays(root):
    needed, before, predicted = pack(root, 16), pack(root, 24), pack(root, 32)
    trained, run = started_cell(root, 24)
    write_json(run.manifest, {"version": 1, "identity": "0" * 64, "state": "done", "files": {}})
    write_json(run.provenance, {"data": trained.datasets[0].packed_digest})
    (test,) = (name for name in predicted if name.startswith("test"))
    np.savez(run.scores_test, made_of=np.array(f"sha {test} all"))
    left, printed = prune(root)
    (training,) = (name for name in before if name.startswith("photos"))
    assert left == {*needed, training, test}
    assert f"stays: needed by experiments/x/{run.name}" in printed


def test_the_test_set_that_a_finished_cell_is_to_predict_stays(root):
    needed = pack(root, 16) | pack(root, 24)
    plan, run = started_cell(root, 24)
    run.spec.write_text(dump(plan.cells[0].cell.spec))
    assert prune(root)[0] == needed
    shutil.rmtree(run.path)
    assert prune(root)[0] == names_of(root, 16)


def test_what_a_queued_job_names_stays_until_it_has_ended(root):
    needed, queued = pack(root, 16), pack(root, 24)
    plan = plan_of(root, "data.size_px=24")
    slurm = root / "experiments" / "another" / "slurm"
    slurm.mkdir(parents=True)
    (slurm / "12_0_submitted.pkl").write_bytes(pickle.dumps(train_task(plan, plan.cells[0])))
    (training,) = (name for name in queued if name.startswith("photos"))
    left, printed = prune(root)
    assert left == {*needed, training}
    assert "stays: needed by a job of experiments/another (12_0)" in printed
    (slurm / "12_0_0_result.pkl").touch()
    assert prune(root)[0] == needed


def test_what_waits_for_its_turn_on_this_machine_stays(root):
    needed, waiting = pack(root, 16), pack(root, 24)
    experiment = root / "experiments" / "another"
    for name in waiting:
        ledger.append(experiment / "ledger.jsonl", "queued", cell="b", cluster="local", packed=name)
    with owned(RunDir(experiment / "a-12345678").path):
        assert prune(root)[0] == needed | waiting
    assert prune(root)[0] == needed


def test_a_folder_that_projects_may_share_is_only_listed(root, tmp_path):
    needed = pack(root, 16) | pack(root, 24)
    (root / "scratch").mkdir()
    (root / "data" / "packed").rename(root / "scratch" / "packed")
    (root / "data" / "packed").symlink_to(root / "scratch" / "packed")
    left, printed = prune(root)
    assert left == needed
    assert "goes: needed by nobody" not in printed
    assert "2 are needed by nobody in this project" in printed
    assert f"data/packed leads to {root / 'scratch' / 'packed'}, where other projects may keep" in printed


def test_what_killed_processes_left_half_written_goes_after_an_hour(root):
    needed = pack(root, 16)
    packed = root / "data" / "packed"
    for name, age in ((".old-16px.abc", 4000), (".new-16px.abc", 0)):
        (packed / name).mkdir()
        (packed / name / "images-000.npy").write_bytes(b"0" * 10)
        for path in (packed / name / "images-000.npy", packed / name):
            os.utime(path, (time.time() - age,) * 2)
    assert prune(root)[0] == {*needed, ".new-16px.abc"}


def test_a_set_that_cannot_be_removed_is_named_and_the_others_go(root, monkeypatch):
    needed, orphans = pack(root, 16), pack(root, 24)
    (stuck,) = (name for name in orphans if name.startswith("photos"))
    rename = Path.rename

    def refuse(self, target):
        if self.name == stuck:
            raise PermissionError(1, "Operation not permitted")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    left, printed = prune(root, expected_status=1)
    assert left == {*needed, stuck}
    assert f"{stuck}: cannot be removed: Operation not permitted" in printed
