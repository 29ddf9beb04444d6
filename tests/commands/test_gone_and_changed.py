"""A source that is gone, or has changed, between two commands."""

import re
import shutil

import pytest

from jobs.planning.plan import make_plan
from pipeline.spec.reading import read_spec
from tests.cells import jobs, packed_project
from tests.conftest import rewritten


def own(spec, drawn_zip, folder):
    """Lets a spec name archives in `folder`, which a test may change."""
    archives = [shutil.copy2(path, folder / path.name) for path in (drawn_zip.train, drawn_zip.test)]
    spec.write_text(spec.read_text().replace(str(drawn_zip.train.parent), str(folder)))
    return archives


@pytest.fixture
def packed(tmp_path, drawn_zip):
    """(spec, its archives), packed, planned once."""
    spec = packed_project(tmp_path, drawn_zip)
    archives = own(spec, drawn_zip, tmp_path)
    assert jobs("plan", spec, cwd=tmp_path)[0] == 0
    return spec, archives


def test_a_plan_says_once_that_a_source_is_gone_and_uses_what_was_packed(packed, tmp_path):
    spec, archives = packed
    for archive in archives:
        archive.unlink()
    status, printed = jobs("plan", spec, cwd=tmp_path)
    assert status == 0, printed
    assert printed.count("note: drawn.zip is gone; the set packed from it on 20") == 1
    assert "drawn-32px" in printed
    status, printed = jobs("status", spec, cwd=tmp_path)
    assert status == 0
    assert "is gone" not in printed


def test_where_nothing_was_packed_from_it_the_missing_source_is_an_error(packed, tmp_path):
    spec, (archive, _) = packed
    archive.unlink()
    for folder in (tmp_path / "data" / "packed").glob("drawn-32px-*"):
        shutil.rmtree(folder)
    status, printed = jobs("plan", spec, cwd=tmp_path)
    assert status == 2
    assert "drawn.zip: there is no such folder or archive" in printed


def test_another_split_can_be_made_of_a_set_whose_source_is_gone(packed, tmp_path):
    spec, archives = packed
    for archive in archives:
        archive.unlink()
    split = "data.split={method: random, validation: 0.5}"
    status, printed = jobs("wrangle", spec, "--set", split, cwd=tmp_path)
    assert status == 0, printed
    assert list(tmp_path.glob("data/packed/drawn-32px-*/split-random-*.json"))


def test_changed_data_is_explained_until_its_cells_are_run(packed, tmp_path):
    spec, (archive, _) = packed

    def change(files):
        files["annotations/red.txt"] += b"1\n"
        del files["images/im9.jpg"]

    assert "has changed" not in jobs("plan", spec, cwd=tmp_path)[1]
    make_plan(read_spec(spec)).remember_data()
    rewritten(archive, change)
    for _ in range(2):
        status, printed = jobs("plan", spec, cwd=tmp_path)
        assert status == 0, printed
        assert (
            "note: drawn.zip: its data has changed since this grid last ran; 1 of its cells train anew, "
            "those of the earlier data stay in their folders\n  labels: annotations/red.txt ("
        ) in printed
        assert "images: 1 removed (im9.jpg)" in printed
    assert "has changed" not in jobs("status", spec, cwd=tmp_path)[1]
    make_plan(read_spec(spec)).remember_data()
    assert "has changed" not in jobs("plan", spec, cwd=tmp_path)[1]


@pytest.mark.slow
def test_a_grid_says_what_has_changed_and_then_no_more(packed, tmp_path):
    spec, (archive, _) = packed
    epochs = ["--set", "train.epochs=1"]
    assert jobs("grid", spec, *epochs, cwd=tmp_path)[0] == 0
    rewritten(archive, lambda files: files.pop("images/im9.jpg"))
    status, printed = jobs("grid", spec, *epochs, cwd=tmp_path)
    assert status == 0, printed
    assert printed.count("images: 1 removed (im9.jpg)") == 1
    assert len(list(tmp_path.glob("experiments/x/*/manifest.json"))) == 2
    assert "has changed" not in jobs("plan", spec, "--set", "train.epochs=2", cwd=tmp_path)[1]


@pytest.mark.slow
def test_all_verbs_go_on_with_finished_cells_whose_source_is_gone(finished, drawn_zip, tmp_path):
    shutil.copytree(finished.parent.parent, tmp_path, dirs_exist_ok=True)
    spec = tmp_path / "experiments" / "x.yaml"
    archives = own(spec, drawn_zip, tmp_path)
    assert "0 to run" in jobs("grid", spec, cwd=tmp_path)[1]
    submission = (tmp_path / "experiments/x/submission.csv").read_bytes()
    for path in [
        *archives,
        tmp_path / "experiments/x/submission.csv",
        *tmp_path.glob("experiments/x/*/*test.npz"),
    ]:
        path.unlink()
    changed = ["--set", "evaluate.threshold=per_label"]
    for verb in ("plan", "status", "evaluate", "select", "predict", "report"):
        status, printed = jobs(verb, spec, *(changed if verb == "evaluate" else ()), cwd=tmp_path)
        assert status == 0, (verb, printed)
        said = len(re.findall(r"note: drawn.zip is gone; the set packed from it", printed))
        assert said == (verb in ("plan", "evaluate")), (verb, printed)
    status, printed = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, printed
    assert "0 to run" in printed
    assert printed.count("drawn.zip is gone") == 1
    assert (tmp_path / "experiments/x/submission.csv").read_bytes() == submission
