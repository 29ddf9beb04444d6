"""Files appear whole or not at all; run folders know what is whole; checkpoints find every flipped bit."""

import json
import os
import random

import pytest
import torch

from pipeline.errors import CheckpointError, PipelineError, SpecError
from pipeline.models.checkpoint import load_checkpoint, load_newest, save_checkpoint
from pipeline.storage.files import atomic_write, sha256_file
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="in the middle"), atomic_write(path, "w") as file:
        file.write("half of the new")
        raise RuntimeError("in the middle")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_before_is_kept_when_asked(tmp_path):
    path, before = tmp_path / "x", tmp_path / "before"
    for text in ("one", "two", "three"):
        with atomic_write(path, "w", keep_as=before) as file:
            file.write(text)
    assert (path.read_text(), before.read_text()) == ("three", "two")


def test_an_unwritable_place_is_named_with_its_free_space(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PipelineError, match=r"file/x.json: cannot be written: .*GB free"),
        atomic_write(tmp_path / "file" / "x.json", "w"),
    ):
        pass


def test_new_files_have_the_umask_s_permissions_not_a_temporary_file_s(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_jsonl(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}]
    assert read_jsonl(tmp_path / "none.jsonl") == []


# ---------------------------------------------------------------- checkpoints


STATE = {"identity": "i", "model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3, "best": None}


def test_a_checkpoint_reads_back_and_is_torch_s_own_format(tmp_path):
    save_checkpoint(tmp_path / "c.pt", STATE)
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 3
    torch.testing.assert_close(torch.load(tmp_path / "c.pt", weights_only=True)["model"], STATE["model"])


def test_any_damage_is_found(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    body = path.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        broken = bytearray(body)
        broken[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"c.pt: is damaged"):
            load_checkpoint(path)
    for size in (0, 10, len(body) - 1):
        path.write_bytes(body[:size])
        with pytest.raises(CheckpointError, match=r"c.pt: is damaged"):
            load_checkpoint(path)


def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    save_checkpoint(previous, STATE | {"step": 1})
    save_checkpoint(last, STATE | {"step": 2})
    assert load_newest(last, previous, "i")[0]["step"] == 2
    last.write_bytes(last.read_bytes()[:-5])
    state, problems = load_newest(last, previous, "i")
    assert state["step"] == 1
    assert "last.pt: is damaged" in problems[0]
    assert load_newest(tmp_path / "a", tmp_path / "b", "i") == (None, [])


def test_a_state_of_another_cell_is_refused(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE)
    with pytest.raises(CheckpointError, match="belongs to the cell i, this is other"):
        load_newest(tmp_path / "last.pt", tmp_path / "previous.pt", "other")


# ---------------------------------------------------------------- run folders


@pytest.fixture
def run(tmp_path):
    run = ExperimentDir(tmp_path / "x").cell("slug", "1234567890", {})
    run.path.mkdir(parents=True)
    for path in (run.spec, run.checkpoint_best, run.scores_val, run.metrics):
        path.write_bytes(b"content of " + path.name.encode())
    run.write_manifest("1234567890", "done")
    return run


def test_a_cell_is_whole_when_its_files_are(run):
    assert run.name == "slug-12345678"
    assert run.why_not_done("1234567890") is None
    assert run.verify(run.scores_val) == run.scores_val
    assert run.why_not_done("other") == "spec changed"
    run.scores_val.write_bytes(b"cut")
    assert run.why_not_done("1234567890") == "artifact damaged: scores_val.npz"
    run.scores_val.unlink()
    assert run.why_not_done("1234567890") == "artifact missing: scores_val.npz"
    with pytest.raises(CheckpointError, match="is not there"):
        run.verify(run.scores_val)


def test_equal_size_is_no_proof_for_who_reads_it(run):
    body = run.scores_val.read_bytes()
    run.scores_val.write_bytes(body[::-1])
    assert (
        sha256_file(run.scores_val)
        != json.loads(run.manifest.read_text())["files"]["scores_val.npz"]["sha256"]
    )
    with pytest.raises(CheckpointError, match="does not match its digest"):
        run.verify(run.scores_val)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}'])
def test_a_manifest_that_cannot_be_read_is_named(run, text):
    run.manifest.write_text(text)
    assert run.why_not_done("1234567890") == "artifact damaged: manifest.json"
    run.manifest.unlink()
    assert run.why_not_done("1234567890") == "new"


def test_states_are_told_in_words(run):
    run.write_manifest("1234567890", "failed", error="no memory")
    assert run.why_not_done("1234567890") == "failed: no memory"
    run.write_manifest("1234567890", "started")
    assert run.why_not_done("1234567890") == "unfinished"


def test_a_cell_is_found_by_its_identity_under_another_slug_and_by_a_prefix(run):
    experiment = ExperimentDir(run.path.parent)
    assert experiment.cell("renamed", "1234567890", experiment.folders()) == run
    assert experiment.find("slug") == run
    (run.path.parent / "slug-2").mkdir()
    (run.path.parent / "slug-2" / "manifest.json").write_text("{}")
    with pytest.raises(SpecError, match=r"RUN=slug: 2 cells start with that in .*: slug-12345678, slug-2"):
        experiment.find("slug")
    with pytest.raises(SpecError, match=r"RUN=nothing: no cell starts with that"):
        experiment.find("nothing")
