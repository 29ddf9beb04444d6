"""Identities that outlive their sources, and what has changed since an experiment saw them. Torch- and numpy-free.

An identity is computed from the source. The last one that was packed is remembered under the settings and
paths it came from, so that finished cells can be planned, measured and used once the source is gone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.contents import contents_path, differences, read_contents
from pipeline.data.layout import (
    DATASET,
    PackedIdentity,
    is_complete,
    packed_identity,
    packed_path,
    split_identity,
)
from pipeline.data.parts import parts_of, tables_of
from pipeline.data.remembered import remembered
from pipeline.errors import DataError, PipelineError
from pipeline.spec import DataSpec, GivenSplit
from pipeline.spec.identity import digest
from pipeline.storage.files import display_path, read_json_or_empty, write_json


@dataclass(frozen=True)
class Known:
    """The identity of a set, and the part of its source that is gone where it is remembered."""

    identity: PackedIdentity
    gone: Path | None = None

    def note(self, packed: Path) -> str | None:
        """What to say of a source that is gone."""
        if self.gone is None:
            return None
        packed_on = time.strftime("%Y-%m-%d", time.localtime((packed / DATASET).stat().st_mtime))
        return f"{display_path(self.gone)} is gone; the set packed from it on {packed_on} is used ({packed.name})"


def known_identity(data: DataSpec, data_root: Path, *, test: bool = False, every_file: bool = True) -> Known:
    """The identity of the set a spec asks for; that of the last one packed where its source is gone.

    `every_file` as in `packed_identity`.

    Raises DataError where a source is missing and nothing complete was packed from it, or is damaged.
    """
    try:
        return Known(packed_identity(data, data_root / "digests", test=test, every_file=every_file))
    except DataError:
        gone = next((path for path in _paths(data, test=test) if _is_gone(path)), None)
        key = data_key(data, test=test)
        last = read_json_or_empty(_last_path(data_root, key))
        if gone is None or last.get("key") != key:
            raise
        identity = PackedIdentity(last["slug"], last["digest"])
        if not is_complete(packed_path(data_root, identity), identity.digest):
            raise
        return Known(identity, gone)


def remember_identity(data: DataSpec, data_root: Path, identity: PackedIdentity, *, test: bool) -> None:
    """Keep the identity of a set that is complete, for when its source is gone."""
    key = data_key(data, test=test)
    path = _last_path(data_root, key)
    value = {"key": key, "slug": identity.slug, "digest": identity.digest}
    if read_json_or_empty(path) != value:
        with contextlib.suppress(PipelineError):  # without a writable cache the source must stay
            write_json(path, value)


def data_key(data: DataSpec, *, test: bool) -> str:
    """Digest of the settings and paths of a set, whatever the files there hold."""
    settings = data.model_dump(mode="json", by_alias=True)
    outside = {name: settings.pop(name) for name in ("test", "split", "negatives", "set_aside")}
    if test:
        settings |= {"test": {name: v for name, v in outside["test"].items() if name != "overlap"}}
    elif isinstance(data.split, GivenSplit):
        settings |= {"split": outside["split"]}  # which names sources of its own
    return digest(settings)


# ---------------------------------------------------------------- what has changed


def seen_key(data: DataSpec) -> str:
    """Digest of the settings and paths of a training set and its split."""
    settings = data.model_dump(mode="json", by_alias=True, include={"split", "negatives"})
    return digest([data_key(data, test=False), settings])


def seen_value(data: DataSpec, packed_digest: str) -> list[str]:
    """What an experiment remembers of the data its cells were trained on."""
    return [packed_digest, split_identity(data)]


def changes(data: DataSpec, data_root: Path, before: Any, now: list[str]) -> list[str]:
    """What has changed in the data since an experiment saw it as `before`, a line each; [] where nothing has."""
    if before == now or not isinstance(before, list) or len(before) != len(now):
        return []
    lines = []
    if before[0] != now[0]:
        cache = data_root / "digests"
        label_file = str(getattr(data.labels, "files", getattr(data.labels, "file", "the labels")))
        made_of = [before[0], now[0], label_file]
        if all(contents_path(cache, of).exists() for of in made_of[:2]):
            lines += remembered(cache, "changes", made_of, lambda: _differences(cache, *made_of))
        lines = lines or ["its content (there is no record of what it was)"]
    if before[1] != now[1]:
        lines.append("split: a list or table that data.split names")
    return lines


def _differences(cache: Path, before: str, now: str, label_file: str) -> list[str]:
    old, new = read_contents(cache, before), read_contents(cache, now)
    return differences(old, new, label_file) if old and new else []


def _last_path(data_root: Path, key: str) -> Path:
    return data_root / "digests" / f"last-{key[:32]}.json"


def _paths(data: DataSpec, *, test: bool) -> Iterator[Path]:
    """The sources and lists of a set."""
    for part in parts_of(data, test=test):
        found = (part.source, part.labels_source, part.image_list)
        yield from (Path(path) for path in found if path)
    yield from (path for path, _ in ({} if test else tables_of(data)).values())


def _is_gone(path: Path) -> bool:
    """Whether there is nothing at `path`: one that cannot be looked at is not gone."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
