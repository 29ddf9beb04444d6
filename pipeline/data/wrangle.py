"""Pack images and labels: every image is decoded once, upright and RGB, in one pass over all cores."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.decoding import Decoded, decode_chunk, start_worker
from pipeline.data.layout import (
    DATASET,
    INDEX,
    LABELS,
    PACK_VERSION,
    REPORT,
    is_complete,
    origin,
    packed_identity,
    packed_path,
)
from pipeline.data.pixel_files import PixelFiles
from pipeline.data.reading import DataRead, read_data, refuse_if_bad
from pipeline.data.wrangle_report import build_report
from pipeline.errors import DataError, PipelineError
from pipeline.spec import DataSpec
from pipeline.storage.files import (
    atomic_write,
    flush,
    sha256_file,
    umask,
    write_csv,
    write_failed,
    write_json,
)
from pipeline.storage.host import cores

# N images, K labels
_CHUNK = 64  # images per task: large enough to hide the cost of passing it on, small enough for an even load


def wrangle(data: DataSpec, data_root: Path, *, test: bool = False, workers: int | None = None) -> Path:
    """Pack the images and labels of a spec under `data_root`, unless that is done; returns the folder.

    The folder appears complete or not at all. Raises DataError when more images or references are
    unusable than `data.set_aside` allows. Fewer are set aside and listed in `wrangle_report.json`.
    """
    identity = packed_identity(data, data_root / "digests", test=test)
    target = packed_path(data_root, identity)
    if is_complete(target, identity.digest):
        return target
    read = read_data(data, test=test)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(target)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise PipelineError(write_failed(target, error)) from error
    try:
        folder.chmod(0o777 & ~umask())
        _pack(data, read, folder, workers or cores(), test=test)
        dataset = {
            "version": PACK_VERSION,
            "digest": identity.digest,
            "source": str(origin(data, test=test).source),
            "images": len(read.images),
            "size_px": data.size_px,
            "resize": data.resize,
            "labels": read.labels,
            "files": _flushed(sorted(folder.iterdir())),
        }
        write_json(folder / DATASET, dataset)
        _put_in_place(folder, target, identity.digest)
    except OSError as error:
        raise PipelineError(write_failed(target, error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _pack(data: DataSpec, read: DataRead, folder: Path, workers: int, *, test: bool) -> None:
    """Write pixels, labels, index and report; what cannot be decoded leaves `read`."""
    packed = _decode(folder, data, read, workers)
    read.problems.undecodable = packed.bad
    refuse_if_bad(read.problems, data, "data.test" if test else "data")
    if read.merge_copies:
        _merge_copies(read, packed)
    pixels = PixelFiles(folder, data.size_px, writable=True)
    pixels.close_gaps(packed.good)
    pixels.finish(len(packed.good))
    read.keep(packed.good)
    with atomic_write(folder / LABELS) as file:
        np.save(file, read.labels_NK)
    _write_index(folder, read, packed.pixel_digests)
    write_json(folder / REPORT, build_report(read, packed.pixel_digests))


def _merge_copies(read: DataRead, packed: _Packed) -> None:
    """Of equal pictures the first stays, with the labels of all; changes `read` and `packed`."""
    first: dict[tuple[str, str], int] = {}
    kept = []
    for row, pixels in zip(packed.good, packed.pixel_digests, strict=True):
        if (same := first.setdefault((read.splits[row], pixels), row)) == row:
            kept.append((row, pixels))
        else:
            read.labels_NK[same] |= read.labels_NK[row]
    if copies := len(packed.good) - len(kept):
        read.notes.append(
            f"{copies} copies of pictures in other folders are merged: one image, all its labels"
        )
    packed.good, packed.pixel_digests = [row for row, _ in kept], [pixels for _, pixels in kept]


def _flushed(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Size and digest of each file, all flushed: the disk writes while the digests are computed."""
    with ThreadPoolExecutor() as pool:
        written = [pool.submit(flush, path) for path in paths]
        digests = list(pool.map(sha256_file, paths))
        for file in written:
            file.result()
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }


@dataclass
class _Packed:
    """The result of decoding; rows and digests are those of the good images, in their order."""

    good: list[int] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    pixel_digests: list[str] = field(default_factory=list)


def _decode(folder: Path, data: DataSpec, read: DataRead, workers: int) -> _Packed:
    """Decode every image into the pixel files of `folder`; bad ones leave gaps."""
    packed = _Packed()
    started = shown = time.monotonic()
    done, total = 0, len(read.images)
    for part in _decoded(folder, data, read, workers):
        packed.pixel_digests += part.digests
        packed.bad += [f"{read.images[done + i].member}: {reason}" for i, reason in part.bad]
        failed = {i for i, _ in part.bad}
        packed.good += [done + i for i in range(part.count) if i not in failed]
        done += part.count
        now = time.monotonic()
        if now - shown > 0.5 or done == total:
            shown = now
            print(f"{done}/{total} images, {done / (now - started):.0f} images/s", flush=True)
    if not packed.good:
        raise DataError(f"{data.source}: none of its {total} images can be decoded: {packed.bad[0]}")
    return packed


def _decoded(folder: Path, data: DataSpec, read: DataRead, workers: int) -> Iterator[Decoded]:
    chunks = list(_chunks(read))
    # spawned, not forked: a fork of a process with threads can hang
    pool = ProcessPoolExecutor(
        max(1, min(workers, len(chunks))),
        get_context("spawn"),
        start_worker,
        (str(folder), data.size_px, data.resize),
    )
    try:
        yield from pool.map(decode_chunk, *zip(*chunks, strict=True))
    except BrokenProcessPool as error:
        raise DataError(
            f"{data.source}: a decoding process died (out of memory, or a file that crashes the decoder)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunks(read: DataRead) -> Iterator[tuple[int, str, list[str]]]:
    """(first row, source, members) of at most `_CHUNK` images of one source."""
    rows = range(len(read.images))
    for source, group in itertools.groupby(rows, key=lambda row: read.sources[row]):
        whole = list(group)
        for start in range(0, len(whole), _CHUNK):
            chunk = whole[start : start + _CHUNK]
            yield chunk[0], str(source), [read.images[row].member for row in chunk]


def _write_index(folder: Path, read: DataRead, pixel_digests: Sequence[str]) -> None:
    columns = zip(read.images, read.splits, pixel_digests, strict=True)
    rows = (
        [row, image.id, image.name, image.member, split, pixels]
        for row, (image, split, pixels) in enumerate(columns)
    )
    write_csv(folder / INDEX, ["row", "id", "name", "path", "part", "pixels"], rows)


def _put_in_place(folder: Path, target: Path, digest: str) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not target.exists():
            raise
        if not is_complete(target, digest):  # else another process was first
            damaged = target.with_name(f".{target.name}.damaged-{os.getpid()}")
            target.rename(damaged)
            folder.rename(target)
            shutil.rmtree(damaged)


def _remove_left_behind(target: Path) -> None:
    """Remove the folders of killed wrangles: nothing was written to them for an hour."""
    for folder in target.parent.glob(f".{target.name}.*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > 3600:
                shutil.rmtree(folder)
