"""One process at a time works in a run folder, on whatever host: a lock file that is kept alive.

It is made by O_EXCL, which NFS and Lustre do atomically where `flock` may be off, and names its owner. An
owner on this host is known to be dead by its pid and start time. One on another host is believed dead
once its heartbeat has not changed for `STALE_S` of our own watching: clocks of two hosts are never
compared. An owner that was thought dead (paused, cut off) finds out before it writes. Torch-free.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, TrainingError
from pipeline.storage.files import write_failed

BEAT_S = 10.0
STALE_S = 60.0  # several beats: one may come late on a busy file system
_held: dict[Path, _Lock] = {}  # of this process


@contextlib.contextmanager
def owned(folder: Path, what: str = "this cell") -> Iterator[None]:
    """Own `folder`; raises TrainingError that names the owner where there is a live one, and `what` it works on."""
    lock = _Lock(folder / ".lock", what)
    try:
        lock.take()
    except OSError as error:
        raise PipelineError(write_failed(lock.path, error)) from error
    _held[folder] = lock
    try:
        yield
    finally:
        del _held[folder]
        lock.release()


@contextlib.contextmanager
def owned_in_turn(path: Path, what: str, *, wait_s: float = 600.0) -> Iterator[None]:
    """Own the lock file `path` once its owner has let go of it; raises TrainingError after `wait_s`."""
    lock, deadline, said = _Lock(path, what), time.monotonic() + wait_s, False
    while True:
        try:
            lock.take()
            break
        except TrainingError as error:
            if time.monotonic() > deadline:
                raise
            if not said:
                print(f"waiting: {error}", flush=True)
            said = True
            time.sleep(0.2)
        except OSError as error:
            raise PipelineError(write_failed(path, error)) from error
    try:
        yield
    finally:
        lock.release()


def check_owned(folder: Path) -> None:
    """Raise TrainingError if this process owned `folder` and another has taken it over since."""
    if folder in _held and not _held[folder].is_ours():
        owner = _described(_read(folder / ".lock"))
        raise TrainingError(
            f"{folder}: {owner} has taken this cell over while this process was paused or cut off; "
            "nothing more is written here"
        )


def owner(folder: Path) -> str:
    """Who works in `folder`, in words; empty where nobody does, or where its owner on this host is dead."""
    seen = _read(folder / ".lock")
    found = _parsed(seen)
    if not found or (found["place"] == _identity()["place"] and _start_of(found["pid"]) != found["started"]):
        return ""
    return _described(seen)


class _Lock:
    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what, self.me = path, what, _identity()
        self.began = time.strftime("%H:%M")
        self._ended = threading.Event()
        self._descriptor = -1

    def take(self) -> None:
        """Make the file and beat from then on; raises TrainingError where a live process has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._descriptor < 0:
            try:
                self._descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            except FileExistsError:
                self._remove_if_stale()
        try:
            self._write(0)
        except OSError:  # a full disk: an empty file would keep others waiting
            os.close(self._descriptor)
            self._descriptor = -1
            self.path.unlink(missing_ok=True)
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Stop beating, and remove the file if it is still ours."""
        self._ended.set()
        with contextlib.suppress(OSError):
            if self.is_ours():
                self.path.unlink()
        os.close(self._descriptor)

    def is_ours(self) -> bool:
        """Whether the file is still this process's; looked at twice, as a mistaken rival puts it back."""
        for _ in range(2):
            if _parsed(_read(self.path)).get("token") == self.me["token"]:
                return True
            time.sleep(0.5)
        return False

    def _remove_if_stale(self) -> None:
        """Returns once the lock in place is gone; raises TrainingError where its owner lives."""
        seen = _read(self.path)
        owner = _parsed(seen)
        if owner.get("place") == self.me["place"]:
            dead = _start_of(owner["pid"]) != owner["started"]
        elif owner and owner["job"] == self.me["job"] and owner["restart"] < self.me["restart"]:
            dead = True  # Slurm starts a job again once it has ended; the count is 0 outside of one
        else:
            dead = self._watched_dead(seen)
        if not dead:
            since = f" since {owner['began']}" if owner.get("began") else ""
            raise TrainingError(f"{self.path.parent}: {_described(seen)} works on {self.what} already{since}")
        aside = self.path.with_name(f".lock.{self.me['token']}")
        with contextlib.suppress(FileNotFoundError):  # a rival was faster
            self.path.rename(aside)
            if _parsed(_read(aside)).get("token") != owner.get("token"):  # its lock, not the dead one's
                os.link(aside, self.path)
            aside.unlink()

    def _watched_dead(self, seen: bytes) -> bool:
        print(
            f"{self.path}: {_described(seen)} may still be running; waiting {STALE_S:g} s for its heartbeat",
            flush=True,
        )
        until = time.monotonic() + STALE_S
        while time.monotonic() < until:
            time.sleep(min(BEAT_S / 2, STALE_S / 10))
            if _read(self.path) != seen:
                return False
        return True

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(BEAT_S):
            count += 1
            with contextlib.suppress(OSError):  # a file system that is away for a moment
                self._write(count)

    def _write(self, beat: int) -> None:
        # into the open file, never to the path: that may be another owner's by now
        os.pwrite(
            self._descriptor, (json.dumps(self.me | {"began": self.began, "beat": beat}) + "\n").encode(), 0
        )
        os.fsync(self._descriptor)


def _identity() -> dict[str, Any]:
    """This process, told from every other one on any host and from what had its pid before."""
    boot = _read(Path("/proc/sys/kernel/random/boot_id")).decode().strip()
    return {
        "host": os.uname().nodename,
        "place": f"{boot} {Path('/proc/self/ns/pid').readlink()}",  # pids mean something only in here
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "token": uuid.uuid4().hex,
    }


def _start_of(pid: int) -> str | None:
    """When a process of this host began, in ticks since boot; None where there is none (a zombie is none)."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return fields[19].decode() if fields and fields[0] != b"Z" else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(body)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) and owner.keys() >= _identity().keys() else {}


def _described(body: bytes) -> str:
    owner = _parsed(body)
    job = f" (Slurm job {owner['job']})" if owner.get("job") else ""
    return f"process {owner['pid']} on {owner['host']}{job}" if owner else "another process"
