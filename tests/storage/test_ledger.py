"""The ledger: what was cut short takes nothing with it, and what cannot be written is said."""

import os

import pytest

from jobs import ledger
from pipeline.errors import PipelineError
from pipeline.storage.files import share_with_group, umask
from pipeline.storage.jsonl import read_jsonl


def test_a_line_after_one_that_was_cut_short_is_whole(tmp_path):
    path = tmp_path / "x" / "ledger.jsonl"
    ledger.append(path, "first")
    with path.open("a") as file:
        file.write('{"event": "cut sh')
    ledger.append_all(path, [{"event": "second"}, {"event": "third"}])
    assert [event["event"] for event in read_jsonl(path)] == ["first", "second", "third"]


def test_a_full_disk_is_said_with_the_path(tmp_path):
    (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match=r"ledger\.jsonl: cannot be written: No space left on device"):
        ledger.append(tmp_path / "ledger.jsonl", "first")


@pytest.mark.parametrize(("mode", "mask"), [(0o775, 0o002), (0o755, 0o022)], ids=["the group's", "one's own"])
def test_files_are_the_group_s_where_the_folder_is(tmp_path, mode, mask):
    before = os.umask(0o022)
    try:
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(mode)
        share_with_group(tmp_path / "shared" / "experiments" / "x")  # not there yet
        assert umask() == mask
    finally:
        os.umask(before)
