"""What a set was made of, file by file, kept beside the digests so that plans can compare. Torch- and numpy-free.

Identities alone only say that something has changed. These records say what: names, sizes and CRC-32 of the
images and label files, compressed, some 15 bytes an image.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.files import atomic_write

LISTED = 1_000_000  # images of a record; of a larger set only their number is kept
UNREADABLE = -1  # the size and checksum of a file that could not be read
_FORMAT = 1
_SHOWN = 5  # names


@dataclass(frozen=True)
class FileMark:
    """A file as its archive's directory knows it."""

    name: str
    size: int
    crc: int

    @property
    def readable(self) -> bool:
        """Whether its content is known."""
        return self.crc != UNREADABLE


@dataclass(frozen=True)
class Contents:
    """The files of a set, and how they were to be packed."""

    settings: Mapping[str, Any]
    count: int
    images: Mapping[str, FileMark] | None  # by id; None: too many to be listed
    labels: Mapping[str, FileMark]  # by label; "" is the one file of all labels


def contents_path(cache: Path, digest: str) -> Path:
    """Where the record of the set with this digest lies."""
    return cache / f"contents-{digest[:32]}.json.gz"


def remember_contents(
    cache: Path,
    digest: str,
    settings: Mapping[str, Any],
    images: Sequence[Sequence[Any]],
    labels: Sequence[Sequence[Any]],
) -> None:
    """Keep [id, name, size, crc] of each image and [label, size, crc] of each label file of a set."""
    listed = [list(image) for image in images] if len(images) <= LISTED else None
    record = {
        "format": _FORMAT,
        "digest": digest,
        "settings": settings,
        "count": len(images),
        "images": listed,
        "labels": [list(label) for label in labels],
    }
    body = gzip.compress(json.dumps(record, separators=(",", ":")).encode(), compresslevel=1, mtime=0)
    with contextlib.suppress(PipelineError), atomic_write(contents_path(cache, digest)) as file:
        file.write(body)  # without a writable cache there is nothing to compare with later


def read_contents(cache: Path, digest: str) -> Contents | None:
    """The record of a set; None where there is none or it is damaged."""
    try:
        record = json.loads(gzip.decompress(contents_path(cache, digest).read_bytes()))
        if record["format"] != _FORMAT or record["digest"] != digest:
            return None
        images = record["images"]
        by_id = None if images is None else {i: FileMark(name, size, crc) for i, name, size, crc in images}
        labels = {label: FileMark(label, size, crc) for label, size, crc in record["labels"]}
        return Contents(record["settings"], record["count"], by_id, labels)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def differences(old: Contents, new: Contents, label_file: str) -> list[str]:
    """What differs, a line for the labels, one for the images and one for the rest; [] where nothing does.

    `label_file` is the name of the label file, or the pattern of their names with `{label}`.
    """
    lines = [_label_files(old.labels, new.labels, label_file), _images(old, new)]
    names = {**old.settings, **new.settings}
    changed = [name for name in names if old.settings.get(name) != new.settings.get(name)]
    told = ["how this program packs them" if name == "version" else name for name in changed]
    lines.append(f"settings: {', '.join(told)}" if told else "")
    return [line for line in lines if line]


def _label_files(old: Mapping[str, FileMark], new: Mapping[str, FileMark], label_file: str) -> str:
    parts = []
    for label in sorted({*old, *new}):
        before, after = old.get(label), new.get(label)
        if before == after:
            continue
        name = label_file.replace("{label}", label)
        if before is None or after is None:
            parts.append(f"{name} {'is new' if after else 'is gone'}")
        elif before.size != after.size:
            parts.append(f"{name} ({before.size:,} -> {after.size:,} bytes)")
        else:
            parts.append(f"{name} (still {after.size:,} bytes)")
    rest = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return f"labels: {', '.join(parts[:_SHOWN])}{rest}" if parts else ""


def _images(old: Contents, new: Contents) -> str:
    if old.images is None or new.images is None:
        return f"images: {old.count:,} -> {new.count:,}" if old.count != new.count else ""
    both = old.images.keys() & new.images.keys()
    found = {
        "added": [mark.name for i, mark in new.images.items() if i not in both],
        "removed": [mark.name for i, mark in old.images.items() if i not in both],
        "changed": [mark.name for i, mark in new.images.items() if i in both and mark != old.images[i]],
    }
    parts = [
        f"{len(names):,} {how} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for how, names in found.items()
        if names
    ]
    if not parts and list(old.images) != list(new.images):
        parts = ["in another order"]
    return f"images: {', '.join(parts)}" if parts else ""
