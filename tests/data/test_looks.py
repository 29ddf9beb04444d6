"""Plans do not look at every file of a large folder: what they notice, what they miss and say, what they cost."""

import os
import zipfile

import pytest

from jobs.commands import data_lines as lines
from jobs.planning.plan import make_plan
from pipeline.data import history, layout, looks, sources
from pipeline.data.layout import packed_identity
from pipeline.data.sources import fingerprint
from pipeline.data.wrangle import wrangle
from pipeline.spec.reading import read_spec
from tests.cells import jobs
from tests.conftest import data_spec, jpeg, write_zip


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Ten files are many, and what was just written counts as settled."""
    monkeypatch.setattr("pipeline.data.layout.MANY", 10)
    monkeypatch.setattr(looks, "_SETTLED_S", -1.0)
    monkeypatch.setattr(looks, "_here", set())


@pytest.fixture
def folder(photos, tmp_path):
    """12 photographs in two folders and two label files in a third."""
    with zipfile.ZipFile(photos) as archive:
        archive.extractall(tmp_path / "photos")
    (tmp_path / "photos/more").mkdir()
    (tmp_path / "photos/images/im12.jpg").rename(tmp_path / "photos/more/im12.jpg")
    return tmp_path / "photos"


@pytest.fixture
def identity(folder, tmp_path):
    """The identity as a plan finds it, which has looked once; as `wrangle` does with `every_file`."""
    data = data_spec(folder, images="im{id}.jpg", size_px=16)

    def find(**options):
        return packed_identity(data, tmp_path / "digests", **{"every_file": False, **options})

    assert find().look is None
    return find


@pytest.fixture
def looked(monkeypatch):
    """How often a file of a folder was looked at for a fingerprint, and anything for its state."""
    counts = {"files": 0, "states": 0}

    def counting(name, function):
        def count(path):
            counts[name] += 1
            return function(path)

        return count

    monkeypatch.setattr(sources, "_stat", counting("files", sources._stat))
    monkeypatch.setattr(looks, "state_of", counting("states", looks.state_of))
    return counts


def test_a_plan_looks_at_directories_and_label_files_alone(identity, looked, monkeypatch):
    monkeypatch.setattr(sources, "_walk", lambda _: pytest.fail("listed"))
    found = identity()
    assert looked == {"files": 0, "states": 4 + 2}
    assert (found.look.files, found.look.digest) == (14, found.digest)


def test_what_packs_looks_at_every_file_once_in_its_process(identity, looked, monkeypatch):
    before = identity()
    assert identity(every_file=True) == before
    assert looked["files"] == 0  # this process has looked when it made the record
    monkeypatch.setattr(looks, "_here", set())
    assert identity(every_file=True) == before
    assert identity(every_file=True).look is None
    assert looked["files"] == 14


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "images/im99.jpg").write_bytes(jpeg(99)),
        lambda folder: (folder / "images/im3.jpg").unlink(),
        lambda folder: (folder / "images/im3.jpg").rename(folder / "images/im33.jpg"),
        lambda folder: (folder / "images/im3.jpg").rename(folder / "more/im3.jpg"),
        lambda folder: (folder / "annotations/dog.txt").write_text("1\n2\n3\n4\n5\n7\n"),
        lambda folder: ((folder / "new").mkdir(), (folder / "new/im98.jpg").write_bytes(jpeg(98))),
        lambda folder: (
            (folder / "x").write_bytes(jpeg(98)),
            (folder / "x").replace(folder / "more/im12.jpg"),
        ),
    ],
    ids=["added", "removed", "renamed", "moved", "label file overwritten", "new folder", "replaced"],
)
def test_a_plan_notices(identity, folder, change):
    before = identity()
    change(folder)
    now = identity()
    assert now.look is None
    assert now.digest != before.digest


def test_an_image_overwritten_in_place_is_missed_by_a_plan_and_found_by_what_packs(
    identity, folder, monkeypatch
):
    before = identity()
    (folder / "images/im3.jpg").write_bytes(jpeg(99))
    monkeypatch.setattr(looks, "_here", set())
    assert identity() == before
    assert "an image overwritten in place" in identity().look.note(folder)
    found = identity(every_file=True)
    assert found != before
    assert identity() == found


def test_few_files_are_looked_at_each_time(identity, folder, monkeypatch, looked):
    monkeypatch.setattr("pipeline.data.layout.MANY", 100)
    (folder / "images/im13.jpg").write_bytes(jpeg(13))
    assert [identity().look for _ in range(3)] == [None] * 3
    assert looked["files"] == 3 * 15


def test_what_changed_just_before_a_look_is_looked_at_again(identity, folder, monkeypatch):
    monkeypatch.setattr(looks, "_SETTLED_S", 3600.0)
    (folder / "images/im13.jpg").write_bytes(jpeg(13))
    assert [identity().look for _ in range(2)] == [None] * 2


def test_a_damaged_or_lost_record_is_looked_at_again(identity, tmp_path):
    (record,) = (tmp_path / "digests").glob("look-*")
    whole = record.read_bytes()
    for body in (whole[:40], whole.replace(b'"files": 14', b'"files": 15')):
        record.write_bytes(body)
        assert identity().look is None
    (contents,) = (tmp_path / "digests").glob("contents-*")
    contents.unlink()
    assert identity().look is None


def test_a_known_archive_is_not_opened(photos, tmp_path, monkeypatch):
    data = data_spec(photos, images="images/im{id}.jpg")
    first = packed_identity(data, tmp_path / "digests")
    monkeypatch.setattr("pipeline.data.parts.open_source", lambda path: pytest.fail(f"{path} opened"))
    for every_file in (False, True):
        assert packed_identity(data, tmp_path / "digests", every_file=every_file) == first


def test_a_name_with_a_back_slash_has_a_state(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b\\im1.jpg").write_bytes(b"abc")
    assert [entry[:2] for entry in fingerprint(tmp_path)] == [("a/b/im1.jpg", 3)]


# ---------------------------------------------------------------- verbs


@pytest.fixture
def project(folder, tmp_path):
    """A spec on the folder."""
    spec = tmp_path / "experiments" / "x.yaml"
    spec.parent.mkdir()
    spec.write_text(
        f"data: {{source: {folder}, images: 'im{{id}}.jpg', size_px: 16}}\ntrain: {{image_px: 16}}\n"
    )
    return spec


@pytest.mark.parametrize("verb", ["plan", "status"])
def test_plan_and_status_say_what_they_assume(project, tmp_path, verb):
    jobs("plan", project, cwd=tmp_path)
    status, printed = jobs(verb, project, cwd=tmp_path)
    assert status == 0, printed
    assert printed.count("note: photos: its 14 files were looked at one by one at 20") == 1


def test_a_plan_reads_the_labels_of_a_set_that_is_not_packed_once(project, folder, tmp_path, monkeypatch):
    first = jobs("plan", project, cwd=tmp_path)
    assert "2 labels: dog 6, tree 6" in first[1]
    with monkeypatch.context() as patch:
        patch.setattr(lines, "_preview", lambda _: pytest.fail("read again"))
        again = jobs("plan", project, cwd=tmp_path)
    assert first[1].splitlines()[:5] == again[1].splitlines()[:5]
    (folder / "annotations/dog.txt").write_text("1\n")
    assert "2 labels: dog 1, tree 6" in jobs("plan", project, cwd=tmp_path)[1]
    (folder / "annotations/dog.txt").write_text("77\n")
    for _ in range(2):  # a mistake is said each time
        status, printed = jobs("plan", project, cwd=tmp_path)
        assert status == 2
        assert "dog.txt: 77" in printed


def test_a_plan_reads_the_report_of_a_packed_set_once(project, tmp_path, monkeypatch):
    status, printed = jobs("wrangle", project, cwd=tmp_path)
    assert status == 0, printed
    first = jobs("plan", project, cwd=tmp_path)[1]
    assert "split: train" in first
    with monkeypatch.context() as patch:
        patch.setattr(lines, "data_summary", lambda *_: pytest.fail("read again"))
        assert jobs("plan", project, cwd=tmp_path)[1] == first
    (report,) = (tmp_path / "data/packed").glob("*/wrangle_report.json")
    os.utime(report)
    monkeypatch.setattr(lines, "data_summary", lambda *_: "read again")
    assert "read again" in jobs("plan", project, cwd=tmp_path)[1]


def test_grid_looks_at_every_file(project, folder, tmp_path, monkeypatch):
    plan = make_plan(read_spec(project, root=tmp_path))
    (folder / "images/im3.jpg").write_bytes(jpeg(99))
    monkeypatch.setattr(looks, "_here", set())
    seen = make_plan(read_spec(project, root=tmp_path), every_file=False)
    assert seen.datasets[0].packed_digest == plan.datasets[0].packed_digest
    assert (
        make_plan(read_spec(project, root=tmp_path)).datasets[0].packed_digest
        != plan.datasets[0].packed_digest
    )


def test_what_has_changed_is_compared_once(photos, tmp_path, monkeypatch):
    root = tmp_path / "data"
    data = data_spec(photos, images="images/im{id}.jpg", size_px=16)
    wrangle(data, root, workers=1)
    before = history.seen_value(data, packed_identity(data, root / "digests").digest)
    with zipfile.ZipFile(photos) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != "images/im9.jpg"}
    write_zip(photos, files)
    now = history.seen_value(data, packed_identity(data, root / "digests").digest)
    told = history.changes(data, root, before, now)
    assert "images: 1 removed (im9.jpg)" in told
    monkeypatch.setattr(history, "read_contents", lambda *_: pytest.fail("read again"))
    assert history.changes(data, root, before, now) == told


def test_a_list_is_read_once_for_all_cells_and_again_when_it_changes(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("1\n2\n")
    before = layout.list_digest(str(tmp_path / "list.txt"))
    with monkeypatch.context() as patch:
        patch.setattr(layout, "read_list", lambda _: pytest.fail("read again"))
        assert layout.list_digest(str(tmp_path / "list.txt")) == before
    (tmp_path / "list.txt").write_text("1\n3\n4\n")
    assert layout.list_digest(str(tmp_path / "list.txt")) != before


def test_a_plan_reads_a_split_once(project, tmp_path, monkeypatch):
    status, printed = jobs("wrangle", project, cwd=tmp_path)
    assert status == 0, printed
    (data,) = make_plan(read_spec(project, root=tmp_path)).datasets
    assert data.images == {"train": 10, "validation": 2}
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.summary.read_json_or_empty", lambda _: pytest.fail("read again"))
        assert data.images == {"train": 10, "validation": 2}
    data.split.unlink()
    assert data.images == {}
