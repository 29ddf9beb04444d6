"""Whether folders are as they were when each of their files was last looked at. Torch- and numpy-free.

A look at a million files is a million stats, which a plan need not wait for. A file that is added, removed
or renamed changes its directory; label files are looked at each by itself. What this misses is an image whose
content is overwritten in place, so only `plan` and `status` rely on it, and they say so.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.files import display_path, read_json_or_empty, write_json
from pipeline.storage.typed import typed

MANY = 10_000  # files; fewer are looked at each time, in a quarter of a second
_SETTLED_S = 2.0  # what changed later than this before a look may change once more under the same mtime
_here: set[str] = set()  # looks of this process, which need no other one


@dataclass(frozen=True)
class Look:
    """What a look at every file of the sources of a packed set found."""

    digest: str  # of the set
    made_of: str  # digest of the settings and of the state of every file
    files: int
    at: float  # seconds since the epoch

    def note(self, source: Path) -> str:
        """What a plan assumes that has not looked itself."""
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.at))
        return (
            f"{display_path(source)}: its {self.files:,} files were looked at one by one at {at}; since then no "
            f"directory and no label file has changed. `{typed('grid')}` looks again, and would also find an image "
            "overwritten in place"
        )


def last_look(cache: Path, asked: str, *, every_file: bool) -> Look | None:
    """The last look at what `asked` is a digest of; None where something has changed since.

    With `every_file` only a look of this process counts.
    """
    known = read_json_or_empty(_path(cache, asked))
    if known.get("asked") != asked or (every_file and asked not in _here):
        return None
    if any(state_of(Path(path)) != state for path, state in known["states"].items()):
        return None
    return Look(**known["look"])


def remember_look(cache: Path, asked: str, look: Look, places: Iterable[Path]) -> None:
    """Keep a look, with the states of the directories, archives and label files that it went by."""
    states = {str(place): state_of(place) for place in places}
    newest = max((max(state[2:]) for state in states.values() if state), default=0)
    if all(states.values()) and newest < (look.at - _SETTLED_S) * 1e9:
        _here.add(asked)
        with contextlib.suppress(PipelineError):  # without a writable cache every plan looks again
            write_json(_path(cache, asked), {"asked": asked, "look": asdict(look), "states": states})


def _path(cache: Path, asked: str) -> Path:
    return cache / f"look-{asked[:32]}.json"


def state_of(path: Path) -> list[Any]:
    """What a write to a file changes, [] where there is none: inode, size, mtime, ctime.

    Not the device: after a reboot that of a network's file system may have another number.
    """
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
