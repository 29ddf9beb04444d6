"""Work for several processes of this host. Torch-free."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
_AHEAD = 4  # tasks per process that wait, or whose results do


def in_processes(
    task: Callable[..., T],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
    prepare: Callable[..., None] | None = None,
    settings: tuple[Any, ...] = (),
) -> Iterator[T]:
    """The results of `task(*call)`, in order; each process first calls `prepare(*settings)`.

    Only a few are under way at a time, as what they hold costs memory.
    Raises BrokenProcessPool where a process dies, and what `task` raises.
    """
    workers = max(1, min(workers, len(calls)))
    # spawned, not forked: a fork of a process with threads can hang
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (prepare, settings))
    try:
        waiting: deque[Future[T]] = deque()
        for call in calls:
            with _starting():
                waiting.append(pool.submit(task, *call))  # starts a process where all are busy
            if len(waiting) == _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(prepare: Callable[..., None] | None, settings: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*settings)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for its next call for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Processes that start meanwhile do not run the main module again, and compute in one thread each.

    They need nothing of that module, its imports cost them more than their own, and a script that calls
    `wrangle` at its top level would start itself without end. Threads beside as many processes only take turns.
    """
    main, threads = sys.modules["__main__"], os.environ.get("OMP_NUM_THREADS")
    sys.modules["__main__"], os.environ["OMP_NUM_THREADS"] = ModuleType("__main__"), "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.pop("OMP_NUM_THREADS")
        os.environ |= {} if threads is None else {"OMP_NUM_THREADS": threads}
