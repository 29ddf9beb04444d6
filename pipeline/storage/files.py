"""Files that appear complete or not at all, and their digests. Torch-free."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from pipeline.errors import PipelineError

_UMASK = threading.Lock()


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", *, keep_as: Path | None = None) -> Iterator[IO[Any]]:
    """A file that takes the name `path` only once it is written, flushed and fsynced.

    With `keep_as`, the file that stood at `path` is kept under that name. If anything fails (a full
    disk, a read-only folder), what stood at `path` stays, nothing else is left behind, and the error
    is a PipelineError that names the path and the free space.
    """
    handle = None
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        os.fchmod(descriptor, 0o666 & ~umask())  # mkstemp's 0600 would hide the file from one's group
        encoding = None if "b" in mode else "utf-8"
        handle = os.fdopen(descriptor, mode, encoding=encoding, newline=None if "b" in mode else "")
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
        handle.close()
        if keep_as is not None and path.exists():
            _keep(path, keep_as)
        temporary.replace(path)
        temporary = None
        _fsync_folder(path.parent)
    except OSError as error:
        raise PipelineError(write_failed(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            if handle is not None:
                handle.close()
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _keep(path: Path, keep_as: Path) -> None:
    spare = keep_as.with_name(f".{keep_as.name}.tmp")
    try:
        spare.unlink(missing_ok=True)
        os.link(path, spare)  # a second name, so that `path` is never missing, not even for a moment
        spare.replace(keep_as)
    except OSError:
        path.replace(keep_as)  # a file system without hard links


def write_failed(path: Path, error: OSError) -> str:
    """One line for a write that failed: the path, the reason, the free space."""
    reason = error.strerror or error
    return f"{path}: cannot be written: {reason} ({free_space(path)}); free some or use another place"


def free_space(path: Path) -> str:
    """`"1.2 GB free"` of the file system that holds `path` (or its nearest existing parent)."""
    for parent in (path, *path.parents):
        with contextlib.suppress(OSError):
            stats = os.statvfs(parent)
            return f"{stats.f_bavail * stats.f_frsize / 1e9:.1f} GB free"
    return "free space unknown"


def display_path(path: Path) -> str:
    """A path as people read it: relative to where they stand, where it lies below that."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def absolute(path: Path) -> Path:
    """The path from the root as it was typed: `.` and `..` are gone, links are not followed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links, absolute() keeps `..`


def near_names(path: Path) -> str:
    """What there is instead of a path that is not there, to be put behind a message; "" where nothing helps."""
    missing = path
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    if missing != path:
        return f"; the folder {missing} is not there either"
    try:
        names = {
            name.lower(): name for name in sorted(p.name for p in path.parent.iterdir()) if name[0] != "."
        }
    except OSError:
        return ""
    near = get_close_matches(path.name.lower(), names, n=3, cutoff=0.7)
    if near:
        return f"; the nearest names there: {', '.join(names[name] for name in near)}"
    shown = ", ".join([*names.values()][:5])
    return (
        f"; its folder holds {shown}{' ...' if len(names) > 5 else ''}" if shown else "; its folder is empty"
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """`value` as indented JSON, atomically, with a digest of itself as the last key, `checksum`."""
    content = {name: part for name, part in value.items() if name != "checksum"}
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content | {"checksum": _checksum(content)}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, without its checksum; ValueError where it is damaged, OSError where it is not there.

    A file without a checksum is one that a person wrote.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    name, value = content.popitem() if content else ("", None)
    if name == "checksum" and value != _checksum(content):
        raise ValueError("its checksum does not match its content")
    if name != "checksum" and value == _checksum(content):
        raise ValueError(f"its checksum is called {name!r}")  # a bit of its name has flipped
    return content if name in ("checksum", "") else content | {name: value}


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, {} where it is missing or damaged."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A header and rows, atomically."""
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def flush(path: Path) -> None:
    """Returns once the disk has what was written to a file; raises OSError as it does."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def umask() -> int:
    """The permissions this process takes from new files."""
    with _UMASK:  # it is read by setting it; two threads that read at once could leave it at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


def share_with_group(folder: Path) -> None:
    """Let this process's files be written by the group too, where the folder (or its nearest parent) is its group's.

    People who share a project write into each other's experiments; a umask of 022 would lock them out.
    """
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            if place.stat().st_mode & stat.S_IWGRP:
                os.umask(umask() & ~0o070)
            return


def _fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems refuse to sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
