"""How the processes of a cell find each other: rank 0 listens, and writes where into a file of the cell's folder.

Whoever starts them gives each its number and, to all, a word that nobody else has: a file of an earlier start has
another one. No port is chosen beforehand, so none can be taken meanwhile. Whoever started one that is killed writes so
into the same file (`jobs/local/ranks.py`), for those that wait.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from pipeline.distributed.group import SILENT_S, SOLO, WAIT_S, Group
from pipeline.errors import LostRankError, TrainingError
from pipeline.storage.files import read_json_or_empty, write_json
from pipeline.storage.typed import typed

RANK, WORD = "LABELGRID_RANK", "LABELGRID_MEETING"  # in the environment of each
_c10d: Any = distributed  # which does not name its stores to mypy
_ANSWER = timedelta(seconds=60)  # of rank 0 to one that asks


def join(
    size: int,
    place: Path,
    device: str = "auto",
    *,
    nodes: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Group | None:
    """The group of this process, once all `size` have come to `place`; `SOLO` for one.

    None once `stopped` says so. Raises TrainingError where this process was given no number, LostRankError where
    the others do not come.
    """
    if size == 1:
        return SOLO
    number, word = os.environ.get(RANK, ""), os.environ.get(WORD)
    if not (number.isdigit() and int(number) < size and word):
        raise TrainingError(
            f"run.gpus_per_cell: {size} processes do this together, and this one has no number among them "
            f"({RANK}={number!r}, {WORD}={word!r}); start it with `{typed('grid')}`"
        )
    rank = int(number)
    store = _listening(word, place, nodes) if rank == 0 else _found(word, place, stopped)

    def lost() -> str:
        found = read_json_or_empty(place)
        return str(found.get("lost", "")) if found.get("word") == word else ""

    if store is None or not Group(rank, size, store, lost, connected=False).meet("here", stopped):
        return None
    if rank == 0:
        place.unlink(missing_ok=True)
    distributed.init_process_group(
        "nccl" if device != "cpu" and torch.cuda.is_available() else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=SILENT_S),
    )
    return Group(rank, size, store, lost)


@contextlib.contextmanager
def joined(size: int, place: Path, device: str) -> Iterator[Group]:
    """The group of a stage's processes, from `join` until the block ends; the others are told of what breaks it off."""
    group = join(size, place, device)
    assert group is not None  # nothing stops it but a signal, which ends the process
    try:
        yield group
    except Exception as error:
        group.abandon(str(error))
        raise
    finally:
        leave()


def leave() -> None:
    """Close the connections, where there are any."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _listening(word: str, place: Path, nodes: int) -> Any:
    host = socket.gethostname() if nodes > 1 else "127.0.0.1"
    store = _c10d.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_ANSWER)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, {"word": word, "host": host, "port": store.port})
    return store


def _found(word: str, place: Path, stopped: Callable[[], bool]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while (found := read_json_or_empty(place)).get("word") != word or "lost" in found:
        if found.get("word") == word:
            raise LostRankError(f"another process of this cell ended ({found['lost']})")
        if stopped():
            return None
        if time.monotonic() > deadline:
            raise LostRankError(f"{place}: the first process of this cell has not come within {WAIT_S:g} s")
        time.sleep(0.05)
    return _c10d.TCPStore(
        found["host"], found["port"], is_master=False, wait_for_workers=False, timeout=_ANSWER
    )
