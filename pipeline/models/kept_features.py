"""Features on disk: whole, or in parts while they are being computed; one process computes, others wait."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.progress import report
from pipeline.storage.files import atomic_write

_POLL_S = 0.2
PART_S = 60.0  # of work are a part
SAY_S = 30.0


class Stopped(Exception):  # noqa: N818 - no error: what was made is kept, the next start goes on behind it
    """The stop flag was set while features were made."""


def read_features(path: Path) -> Tensor | None:
    """What `write_features` wrote; None where it is absent or damaged."""
    # a damaged file is computed again
    damage = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(*damage), path.open("rb") as body, np.load(body) as file:
        return torch.from_numpy(file["bytes"]).view(getattr(torch, str(file["dtype"])))
    return None


def write_features(path: Path, features: Tensor) -> bool:
    """Whether they could be kept: (N, ...) of any dtype, complete or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez(file, bytes=features.view(torch.uint8).numpy(), dtype=str(features.dtype)[6:])
    except OSError as error:  # a shared set that only its owner may add to
        print(f"{path}: cannot be kept ({error.strerror}); used for this run alone", flush=True)
        return False
    return True


class Parts:
    """The features of the first positions of a view, in files; a killed process loses a minute of work."""

    def __init__(self, path: Path) -> None:
        self.folder = path.with_name(f".{path.stem}.parts")
        self._since = time.monotonic()
        self._writable = True

    def read(self) -> Iterator[Tensor]:
        """What earlier processes made, from position 0 on without a gap."""
        start = 0
        while (part := read_features(self._file(start))) is not None and len(part):
            start += len(part)
            yield part

    @property
    def is_due(self) -> bool:
        """Whether what was made since the last part is worth one."""
        return self._writable and time.monotonic() - self._since > PART_S

    def write(self, start: int, features: Tensor) -> None:
        """Keep the features of consecutive positions from `start` on."""
        self._writable = self._writable and write_features(self._file(start), features)
        self._since = time.monotonic()

    def clear(self) -> None:
        """The whole is kept: parts are of no use."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:09d}.npz"


class FeatureProgress:
    """A line now and then: pictures done, speed, time left."""

    def __init__(self, total: int, done: int, what: str) -> None:
        self.total, self.what = total, what
        self._first, self._began = done, time.monotonic()
        self._said = self._began

    def at(self, done: int) -> None:
        """So many pictures are done."""
        report(f"features of {self.what}, image", done, self.total)
        now = time.monotonic()
        if now - self._said < SAY_S or done == self.total:
            return
        self._said = now
        speed = (done - self._first) / (now - self._began)
        left = int((self.total - done) / max(speed, 1e-9))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        print(f"features {done}/{self.total} of {self.what}, {speed:.0f} images/s, {clock} left", flush=True)


@contextlib.contextmanager
def locked(path: Path, stopped: Callable[[], bool]) -> Iterator[None]:
    """A lock that others wait for, until they are stopped.

    Where locks do not work, the same is computed twice and put in place once.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.with_name(f".{path.stem}.lock").open("w"))
            said = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stopped():
                        raise Stopped from None
                    report("features, which another process makes")
                    if not said:
                        print("features: another process makes them; waiting for it", flush=True)
                        said = True
                    time.sleep(_POLL_S)
        yield
