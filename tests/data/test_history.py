"""What is known of a set once its source is gone or has changed."""

import shutil

import pytest

from pipeline.data import contents
from pipeline.data.contents import read_contents
from pipeline.data.history import changes, known_identity, remember_identity, seen_key, seen_value
from pipeline.data.layout import packed_identity
from pipeline.data.wrangle import wrangle
from pipeline.errors import DataError
from tests.conftest import data_spec, jpeg, rewritten


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def spec_of(photos, **settings):
    return data_spec(photos, images="images/im{id}.jpg", size_px=16, **settings)


def packed(data, root, *, test=False):
    folder = wrangle(data, root, test=test, workers=1)
    identity = packed_identity(data, root / "digests", test=test)
    remember_identity(data, root, identity, test=test)
    return folder, identity


def test_the_set_of_a_source_that_is_gone_is_still_known(photos, root):
    data = spec_of(photos)
    folder, identity = packed(data, root)
    photos.unlink()
    known = known_identity(data, root)
    assert (known.identity, known.gone) == (identity, photos)
    assert known.note(folder).startswith(f"{photos} is gone; the set packed from it on 20")
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="there is no such folder or archive"):
        known_identity(data, root)


def test_the_test_set_is_known_too_and_not_mistaken_for_the_training_set(photos, root, tmp_path):
    test = {"source": str(tmp_path / "test.zip"), "images": "im{id}.jpg", "labels": {"format": "id_lists"}}
    shutil.copy(photos, tmp_path / "test.zip")
    data = spec_of(photos, test=test)
    _, identity = packed(data, root, test=True)
    (tmp_path / "test.zip").unlink()
    assert known_identity(data, root, test=True).identity == identity
    photos.unlink()
    with pytest.raises(DataError, match=r"photos\.zip: there is no"):
        known_identity(data, root)


def test_damage_is_not_absence(photos, root):
    data = spec_of(photos)
    packed(data, root)
    photos.write_bytes(b"PK")
    with pytest.raises(DataError, match="cut short"):
        known_identity(data, root)


def test_other_settings_are_another_set(photos, root):
    packed(spec_of(photos), root)
    photos.unlink()
    with pytest.raises(DataError, match="there is no such folder or archive"):
        known_identity(spec_of(photos, resize="crop"), root)


def test_what_has_changed_is_named(photos, root):
    data = spec_of(photos)
    before = seen_value(data, packed_identity(data, root / "digests").digest)
    key = seen_key(data)

    def change(files):
        files["annotations/dog.txt"] += b"12\n"
        files["annotations/sky.txt"] = b"1\n2\n"
        del files["images/im3.jpg"]
        files["images/im20.jpg"] = jpeg(20)
        files["images/im21.jpg"] = jpeg(21)
        files["images/im7.jpg"] = jpeg(77)

    rewritten(photos, change)
    now = seen_value(data, packed_identity(data, root / "digests").digest)
    assert seen_key(data) == key
    assert changes(data, root, before, now) == [
        "labels: annotations/dog.txt (12 -> 15 bytes), annotations/sky.txt is new",
        "images: 2 added (im20.jpg, ...), 1 removed (im3.jpg), 1 changed (im7.jpg)",
    ]
    assert changes(data, root, now, now) == []


def test_a_changed_list_of_the_split_is_named(photos, root, tmp_path):
    for name, ids in (("train", "1\n2\n3\n"), ("validation", "4\n5\n")):
        (tmp_path / f"{name}.txt").write_text(ids)
    lists = {name: str(tmp_path / f"{name}.txt") for name in ("train", "validation")}
    data = spec_of(photos, split={"method": "lists", **lists})
    identity = packed_identity(data, root / "digests").digest
    before = seen_value(data, identity)
    (tmp_path / "validation.txt").write_text("4\n6\n")
    assert changes(data, root, before, seen_value(data, identity)) == [
        "split: a list or table that data.split names"
    ]


def test_of_a_set_too_large_to_list_only_the_number_is_kept(photos, root, monkeypatch):
    monkeypatch.setattr(contents, "LISTED", 11)
    data = spec_of(photos)
    digest = packed_identity(data, root / "digests").digest
    assert read_contents(root / "digests", digest).images is None
    rewritten(photos, lambda files: files.pop("images/im11.jpg"))
    now = packed_identity(data, root / "digests").digest
    found = changes(data, root, seen_value(data, digest), seen_value(data, now))
    assert found == ["images: 12 -> 11"]


def test_a_damaged_record_is_none(photos, root):
    data = spec_of(photos)
    digest = packed_identity(data, root / "digests").digest
    path = contents.contents_path(root / "digests", digest)
    path.write_bytes(path.read_bytes()[:-9])
    assert read_contents(root / "digests", digest) is None
    found = changes(data, root, seen_value(data, digest), seen_value(data, "0" * 64))
    assert found == ["its content (there is no record of what it was)"]
