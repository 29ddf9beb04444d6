"""A packed set's files against their digests; pixels once per node and state of a file. Torch-free.

What a node has verified is kept in a folder of the user: host and boot, and for each file of pixels its
device, inode, size, mtime, ctime and expected digest. A file that differs in any of them is read again, and
so is every file on another node, whose copy in memory or on its own disk may differ. What a state cannot
show, bits that changed without a write, is found by `doctor`, on another node, or after a reboot.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.data.layout import INDEX, INDEX_CSV
from pipeline.errors import DataError, PipelineError
from pipeline.spec.identity import digest
from pipeline.storage.files import read_json_or_empty, sha256_file, write_json
from pipeline.storage.host import node
from pipeline.storage.ownership import owned_in_turn
from pipeline.storage.typed import typed

Check = Literal["size", "once", "always"]
SETTLED_S = 2.0  # a file changed later than this before it is read may change once more under the same mtime
_WAIT_S = 7200.0  # for another process of this node that reads the same pixels; then both do
_FORGET_S = 14 * 86400.0  # of a record that was not written since; its set is then verified once more
_KEEP_S = 60.0  # between two writes of what is verified so far, for when this process is killed
Files = Mapping[str, Mapping[str, Any]]  # as in dataset.json


def verify_files(packed: Path, files: Files, pixels: Check) -> None:
    """Compare the files of a set with their sizes and digests; a DataError names one that is missing or damaged.

    `pixels` are read: never ("size"), unless this node has verified them as they are now ("once"), "always".
    """
    seldom = (
        ("images-", INDEX_CSV) if INDEX in files else ("images-",)
    )  # the index for people is not read here
    images = {name: expected for name, expected in files.items() if name.startswith(seldom)}
    for name, expected in files.items():
        _compare(packed / name, expected, read=name not in images)
    if pixels != "size":
        _verify(packed, images, afresh=pixels == "always")


def _compare(file: Path, expected: Mapping[str, Any], *, read: bool) -> None:
    remedy = f"delete {file.parent} and run `{typed('wrangle')}` again"
    try:
        whole = file.stat().st_size == expected["bytes"]
        whole = whole and (not read or sha256_file(file) == expected["sha256"])
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; {remedy}") from error
    if not whole:
        raise DataError(f"{file}: is damaged (it differs from its digest in dataset.json); {remedy}")


def _verify(packed: Path, images: Files, *, afresh: bool) -> None:
    record = _record_path(packed)
    with contextlib.ExitStack() as alone:
        if afresh and record is not None:
            with contextlib.suppress(OSError):
                record.unlink(missing_ok=True)  # what is found damaged now must not be believed later
        elif record is not None and _unverified(packed, images, _read(record)):
            what = f"the verification of {packed}"
            with contextlib.suppress(PipelineError):  # without a lock the same bytes are read twice
                alone.enter_context(owned_in_turn(record.with_suffix(".lock"), what, wait_s=_WAIT_S))
        known = {} if afresh or record is None else _read(record)
        kept = time.monotonic()
        missing = _unverified(packed, images, known)
        for name in missing:
            began = time.time()
            state = _state(packed / name, images[name])
            _compare(packed / name, images[name], read=True)
            changed = max(state[3], state[4]) / 1e9  # mtime, ctime
            if changed < began - SETTLED_S and state == _state(packed / name, images[name]):
                known[name] = state
            if time.monotonic() - kept > _KEEP_S or name == missing[-1]:
                kept = time.monotonic()
                _write(record, known)


def _unverified(packed: Path, images: Files, known: Mapping[str, Any]) -> list[str]:
    return [name for name, expected in images.items() if known.get(name) != _state(packed / name, expected)]


def _state(file: Path, expected: Mapping[str, Any]) -> list[Any]:
    """What a write to the file changes; the ctime shows also one whose mtime was set back."""
    with contextlib.suppress(OSError):
        s = file.stat()
        return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, expected["sha256"]]
    return [0, 0, 0, 0, 0, ""]  # reading it will say what is wrong


def _record_path(packed: Path) -> Path | None:
    """Where this node's record of a set lies: one file for each node, so that they do not write over each other's."""
    own, cache = os.environ.get("LABELGRID_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(own or Path(cache or "~/.cache").expanduser() / "labelgrid")
    except RuntimeError:  # a user without a home
        return None
    if node() is None or not folder.is_absolute():
        return None
    return folder / "verified" / f"{os.uname().nodename}-{digest(str(packed.resolve()))[:16]}.json"


def _read(record: Path) -> dict[str, Any]:
    """The states that were verified, by file; {} where the record is missing, damaged or of another boot."""
    known = read_json_or_empty(record)
    states = known.get("files")
    return states if known.get("node") == node() and isinstance(states, dict) else {}


def _write(record: Path | None, known: Mapping[str, Any]) -> None:
    if record is not None:
        with contextlib.suppress(PipelineError):  # without a record the next start reads the pixels again
            write_json(record, {"node": node(), "files": dict(known)})
        _forget_old(record)


def _forget_old(record: Path) -> None:
    """Remove what this node noted long ago: jobs that copy a set to a folder of their own leave a record each."""
    with contextlib.suppress(OSError):
        for other in record.parent.glob(f"{os.uname().nodename}-*"):
            if time.time() - other.stat().st_mtime > _FORGET_S:
                other.unlink(missing_ok=True)
