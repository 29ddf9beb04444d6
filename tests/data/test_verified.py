"""Pixels are read to verify them once per node and state of a file; whatever may differ is read again."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jobs.commands import doctor
from jobs.planning.plan import make_plan
from pipeline.data import verified
from pipeline.data.packed import PackedSet
from pipeline.data.wrangle import wrangle
from pipeline.errors import DataError
from pipeline.evaluation.submission import make_submission
from pipeline.spec.reading import read_spec
from pipeline.storage.files import sha256_file
from tests.cells import PATIENCE_S, packed_project
from tests.conftest import ROOT, data_spec


@pytest.fixture
def packed(photos, tmp_path, monkeypatch):
    """A packed set whose files count as old enough to be believed, and a folder of records of its own."""
    monkeypatch.setattr(verified, "SETTLED_S", -1.0)
    monkeypatch.setenv("LABELGRID_CACHE", str(tmp_path / "records"))
    return wrangle(data_spec(photos, images="images/im{id}.jpg", size_px=16), tmp_path / "data", workers=1)


@pytest.fixture
def hashed(monkeypatch):
    """The names of the pixel files that were read since `clear`."""
    names = []

    def counting(path):
        names.extend([path.name] if path.name.startswith("images-") else [])
        return sha256_file(path)

    monkeypatch.setattr(verified, "sha256_file", counting)
    return names


def record_of(tmp_path):
    (record,) = (tmp_path / "records" / "verified").glob("*.json")
    return record


def flip(path, *, at=-1):
    with path.open("r+b") as file:
        body = bytearray(file.read())
        body[at] ^= 1
        file.seek(0)
        file.write(body)


def rot(path, monkeypatch):
    """A flipped bit that the state of the file does not show: it is recorded as verified in that state."""
    flip(path)
    with monkeypatch.context() as patch:
        patch.setattr(verified, "_compare", lambda *_, **__: None)
        PackedSet.open(path.parent)


def test_the_second_start_on_a_node_reads_no_pixels(packed, hashed):
    for _ in range(3):
        PackedSet.open(packed)
    assert hashed == ["images-000.npy"]


def test_without_pixels_in_use_none_are_read(packed, hashed):
    PackedSet.open(packed, verify=False)
    assert hashed == []


@pytest.mark.parametrize("back", [False, True])
def test_a_changed_byte_is_found_at_the_next_start(packed, back):
    PackedSet.open(packed)
    pixels = packed / "images-000.npy"
    before = pixels.stat()
    flip(pixels)
    os.utime(pixels, ns=(before.st_atime_ns, before.st_mtime_ns if back else before.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"images-000.npy: is damaged"):
        PackedSet.open(packed)


def test_a_touched_file_and_a_copy_are_read_again(packed, hashed):
    PackedSet.open(packed)
    pixels = packed / "images-000.npy"
    os.utime(pixels)
    PackedSet.open(packed)
    copy = pixels.with_name("copy")
    copy.write_bytes(pixels.read_bytes())
    os.utime(copy, ns=(pixels.stat().st_atime_ns, pixels.stat().st_mtime_ns))
    copy.replace(pixels)
    PackedSet.open(packed)
    PackedSet.open(packed)
    assert len(hashed) == 3


def test_another_node_and_another_boot_read_the_pixels_again(packed, hashed, monkeypatch):
    PackedSet.open(packed)
    for name in ("n1 boot-1", "n1 boot-2"):
        monkeypatch.setattr(verified, "node", lambda name=name: name)
        PackedSet.open(packed)
        PackedSet.open(packed)
    assert len(hashed) == 3


def test_a_host_that_cannot_be_told_and_a_folder_that_cannot_be_written_verify_each_time(
    packed, hashed, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LABELGRID_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        PackedSet.open(packed)
    monkeypatch.setattr(verified, "node", lambda: None)
    for _ in range(2):
        PackedSet.open(packed)
    assert len(hashed) == 4


def test_another_expected_digest_is_not_verified(packed, monkeypatch):
    PackedSet.open(packed)
    files = {"images-000.npy": {"bytes": (packed / "images-000.npy").stat().st_size, "sha256": "0" * 64}}
    with pytest.raises(DataError, match=r"images-000.npy: is damaged"):
        verified.verify_files(packed, files, "once")


def test_a_damaged_record_is_not_believed(packed, hashed, tmp_path):
    PackedSet.open(packed)
    record = record_of(tmp_path)
    whole = record.read_bytes()
    for body in (b"", b"{", whole[:-30], whole.replace(b"images-000", b"images-001"), b'{"files": 3}'):
        record.write_bytes(body)
        hashed.clear()
        PackedSet.open(packed)
        assert hashed == ["images-000.npy"], body


def test_a_file_that_was_just_written_is_not_recorded(packed, hashed, monkeypatch):
    """Within the resolution of its clock it can be written once more with equal size and mtime."""
    monkeypatch.setattr(verified, "SETTLED_S", 3600.0)
    PackedSet.open(packed)
    PackedSet.open(packed)
    assert len(hashed) == 2


def test_a_file_that_changes_while_it_is_read_is_not_recorded(packed, monkeypatch):
    def reading(path):
        found = sha256_file(path)
        if path.name == "images-000.npy":
            flip(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(verified, "sha256_file", reading)
        PackedSet.open(packed)
    with pytest.raises(DataError, match=r"images-000.npy: is damaged"):
        PackedSet.open(packed)


def test_doctor_reads_every_byte_and_what_it_finds_is_believed_no_more(
    tmp_path, drawn_zip, monkeypatch, hashed
):
    monkeypatch.setattr(verified, "SETTLED_S", -1.0)
    plan = make_plan(read_spec(packed_project(tmp_path, drawn_zip)))
    packed = plan.datasets[0].packed
    rot(packed / "images-000.npy", monkeypatch)
    PackedSet.open(packed)  # nothing shows it
    assert hashed == []
    bad = [check for check in doctor._data(plan) if not check.ok]
    assert [check.what for check in bad] == ["data"]
    assert f"{packed}/images-000.npy: is damaged" in bad[0].result
    with pytest.raises(DataError, match="is damaged"):
        PackedSet.open(packed)


def test_a_submission_reads_no_pixels(finished, drawn_zip, hashed, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELGRID_CACHE", str(tmp_path / "records"))
    plan = make_plan(read_spec(finished.with_suffix(".yaml")))
    run = next(cell.run for cell in plan.cells if cell.run.scores_test.exists())
    test = plan.tests[run.name]
    before = plan.experiment.submission.read_bytes()
    make_submission(plan.experiment, [run], {run.name: (test.packed, test.split)}, plan.loaded.spec.evaluate)
    assert plan.experiment.submission.read_bytes() == before
    assert hashed == []


_OPEN = """
import sys, time
from pathlib import Path
from pipeline.data import verified
from pipeline.data.packed import PackedSet
from pipeline.storage.files import sha256_file

def slow(path):
    if path.name.startswith("images-"):
        print("read", path.name, flush=True)
        time.sleep(2)
    return sha256_file(path)

verified.SETTLED_S, verified.sha256_file = -1.0, slow
print("began", flush=True)
PackedSet.open(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_of_processes_that_start_together_one_reads_the_pixels(packed):
    command = [sys.executable, "-c", _OPEN, str(packed)]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate(timeout=PATIENCE_S)[0] for process in started]
    assert all(process.returncode == 0 for process in started)
    assert sum(text.count("read images-000.npy") for text in printed) == 1, printed


def test_only_the_file_that_changed_is_read_again(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(verified, "SETTLED_S", -1.0)
    files = {}
    for i in range(3):
        path = tmp_path / f"images-00{i}.npy"
        np.save(path, np.full(9, i))
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    verified.verify_files(tmp_path, files, "once")
    os.utime(tmp_path / "images-001.npy", ns=(5, 5))
    hashed.clear()
    verified.verify_files(tmp_path, files, "once")
    assert hashed == ["images-001.npy"]


def test_records_of_sets_that_are_gone_are_forgotten(packed, tmp_path):
    """A job that copies a set to a folder of its own leaves one each time."""
    PackedSet.open(packed)
    record = record_of(tmp_path)
    old = record.with_name(f"{os.uname().nodename}-0123456789abcdef.json")
    other = record.with_name("another-node-0123456789abcdef.json")
    for path in (old, other):
        path.write_text("{}")
        os.utime(path, (0, 0))
    flip(packed / "images-000.npy")
    flip(packed / "images-000.npy")  # as it was, in another state, so that it is read and noted again
    PackedSet.open(packed)
    assert sorted(path.name for path in record.parent.glob("*.json")) == sorted([other.name, record.name])
