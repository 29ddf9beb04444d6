"""Decode the images of a set on all cores, in processes that each read the sources themselves. Torch-free."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pipeline.data.decoding import Decoded, Preparation, decode_chunk, measure_chunk, start_worker
from pipeline.errors import DataError

_CHUNK = 64  # images per task: large enough to hide the cost of passing it on, small enough for an even load
T = TypeVar("T")
Files = Sequence[tuple[str, str]]  # (path of a source, member in it), one for each image


def decode_all(files: Files, folder: Path, preparation: Preparation, workers: int) -> Iterator[Decoded]:
    """Decode `files` into the pixel files of `folder`, image i into row i; results by chunks, in order.

    Raises DataError where a process dies.
    """
    chunks = _chunks(files)
    lengths = [len(members) for _, members in chunks]
    starts = itertools.accumulate(lengths[:-1], initial=0)
    calls = [(start, *chunk) for start, chunk in zip(starts, chunks, strict=True)]
    return _in_pool(decode_chunk, calls, folder, preparation, workers)


def common_range(files: Files, folder: Path, workers: int) -> tuple[float, float] | None:
    """The smallest and largest value among the pictures of more than 8 bits; None where there are none.

    Only these are decoded. The ends differ even if all values are equal.
    """
    nothing = Preparation(1, "squash")
    found = _in_pool(measure_chunk, _chunks(files), folder, nothing, workers)
    ends = [end for chunk in found for end in chunk]
    if not ends:
        return None
    low, high = float(min(ends)), float(max(ends))
    return low, high if high > low else low + max(1.0, abs(low))


def _chunks(files: Files) -> list[tuple[str, list[str]]]:
    """(source, members), in order: a chunk has one source."""
    chunks = []
    for source, group in itertools.groupby(files, key=lambda file: file[0]):
        members = [member for _, member in group]
        chunks += [(source, members[i : i + _CHUNK]) for i in range(0, len(members), _CHUNK)]
    return chunks


def _in_pool(
    task: Callable[..., T],
    calls: Sequence[tuple[object, ...]],
    folder: Path,
    preparation: Preparation,
    workers: int,
) -> Iterator[T]:
    # spawned, not forked: a fork of a process with threads can hang
    pool = ProcessPoolExecutor(
        max(1, min(workers, len(calls))),
        get_context("spawn"),
        start_worker,
        (str(folder), preparation),
    )
    try:
        with _without_main():
            results = pool.map(task, *zip(*calls, strict=True))  # starts the processes
        yield from results
    except BrokenProcessPool as error:
        sources = ", ".join(sorted({str(call[-2]) for call in calls}))
        raise DataError(
            f"{sources}: a decoding process died (out of memory, or a file that crashes the decoder)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes that start meanwhile do not run the main module again.

    They need nothing of it, its imports cost them more than their own, and a script that calls `wrangle`
    at its top level would start itself without end.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
