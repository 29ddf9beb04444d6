"""Decode the images of a set on all cores, in processes that each read the sources themselves. Torch-free."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from pipeline.data.decoding import Decoded, Preparation, decode_chunk, measure_chunk, start_worker
from pipeline.errors import DataError
from pipeline.storage.processes import in_processes

_CHUNK = 64  # images per task: large enough to hide the cost of passing it on, small enough for an even load
_CHUNK_BYTES = 32 << 20  # of their pixels, which a process holds together
T = TypeVar("T")
Files = Sequence[tuple[str, str]]  # (path of a source, member in it), one for each image


def decode_all(files: Files, folder: Path, preparation: Preparation, workers: int) -> Iterator[Decoded]:
    """Decode `files` into the pixel files of `folder`, image i into row i; results by chunks, in order.

    Raises DataError where a process dies.
    """
    chunks = _chunks(files, preparation.size_px)
    lengths = [len(members) for _, members in chunks]
    starts = itertools.accumulate(lengths[:-1], initial=0)
    calls = [(start, *chunk) for start, chunk in zip(starts, chunks, strict=True)]
    return _in_pool(decode_chunk, calls, folder, preparation, workers)


def common_range(files: Files, folder: Path, workers: int) -> tuple[float, float] | None:
    """The smallest and largest value among the pictures of more than 8 bits; None where there are none.

    Only these are decoded. The ends differ even if all values are equal.
    """
    nothing = Preparation(1, "squash")
    found = _in_pool(measure_chunk, _chunks(files, nothing.size_px), folder, nothing, workers)
    ends = [end for chunk in found for end in chunk]
    if not ends:
        return None
    low, high = float(min(ends)), float(max(ends))
    return low, high if high > low else low + max(1.0, abs(low))


def _chunks(files: Files, size_px: int) -> list[tuple[str, list[str]]]:
    """(source, members), in order: a chunk has one source, and few bytes of pixels."""
    chunks = []
    count = max(1, min(_CHUNK, _CHUNK_BYTES // (3 * size_px**2)))
    for source, group in itertools.groupby(files, key=lambda file: file[0]):
        members = [member for _, member in group]
        chunks += [(source, members[i : i + count]) for i in range(0, len(members), count)]
    return chunks


def _in_pool(
    task: Callable[..., T],
    calls: Sequence[tuple[object, ...]],
    folder: Path,
    preparation: Preparation,
    workers: int,
) -> Iterator[T]:
    try:
        yield from in_processes(task, calls, workers, start_worker, (str(folder), preparation))
    except BrokenProcessPool as error:
        sources = ", ".join(sorted({str(call[-2]) for call in calls}))
        raise DataError(
            f"{sources}: a decoding process died (out of memory, or a file that crashes the decoder)"
        ) from error
