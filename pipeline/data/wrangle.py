"""Pack images and labels: every image is decoded once, upright and RGB, in one pass over all cores."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.decode_pool import Files, common_range, decode_all
from pipeline.data.decoding import Preparation
from pipeline.data.index import COLUMNS, Index
from pipeline.data.layout import (
    DATASET,
    INDEX,
    INDEX_CSV,
    LABELS,
    PACK_VERSION,
    REPORT,
    is_complete,
    origin,
    packed_identity,
    packed_path,
)
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_files import PixelFiles
from pipeline.data.reading import DataRead, Problems, read_data, refuse_if_bad
from pipeline.data.wrangle_report import build_report
from pipeline.errors import DataError, PipelineError
from pipeline.progress import report
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
_SAY_S = 30.0  # between two lines of the log


def wrangle(data: DataSpec, data_root: Path, *, test: bool = False, workers: int | None = None) -> Path:
    """Pack the images and labels of a spec under `data_root`, unless that is done; returns the folder.

    The folder appears complete or not at all. Raises DataError when more images or references are
    unusable than `data.set_aside` allows. Fewer are set aside and listed in `wrangle_report.json`.
    """
    identity = packed_identity(data, data_root / "digests", test=test)
    target = packed_path(data_root, identity)
    if is_complete(target, identity.digest):
        return target
    workers = workers or cores()
    # test pictures get the range of the training pictures
    trained_on = wrangle(data, data_root, workers=workers) if test and data.range == "auto" else None
    read = read_data(data, test=test)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(target)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise PipelineError(write_failed(target, error)) from error
    try:
        folder.chmod(0o777 & ~umask())
        files = [(str(source), image.member) for source, image in zip(read.sources, read.images, strict=True)]
        preparation = _preparation(data, trained_on, files, folder, workers)
        packed = _decode(files, folder, preparation, workers, read.problems)
        refuse_if_bad(read.problems, data, "data.test" if test else "data")
        _pack(read, packed, folder, preparation.size_px)
        dataset = {
            "version": PACK_VERSION,
            "digest": identity.digest,
            "source": str(origin(data, test=test).source),
            "images": len(read.images),
            **asdict(preparation),
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


def _preparation(
    data: DataSpec, trained_on: Path | None, files: Files, folder: Path, workers: int
) -> Preparation:
    """What becomes of every picture; `auto` looks at all of them, or takes the range of `trained_on`."""
    ends: str | tuple[float, float] | None = data.range
    if trained_on is not None:
        ends = PackedSet.open(trained_on, verify=False).range
    elif ends == "auto":
        ends = common_range(files, folder, workers)
    return Preparation(data.size_px, data.resize, None if isinstance(ends, str) else ends, data.interpolation)


def _pack(read: DataRead, packed: _Packed, folder: Path, size_px: int) -> None:
    """Write pixels, labels, index and report; what cannot be decoded leaves `read`."""
    report("writing the packed set")
    if read.merge_copies:
        _merge_copies(read, packed)
    pixels = PixelFiles(folder, size_px, writable=True)
    pixels.close_gaps(packed.good)
    pixels.finish(len(packed.good))
    read.keep(packed.good)
    with atomic_write(folder / LABELS) as file:
        np.save(file, read.labels_NK)
    write_json(folder / REPORT, build_report(read, _write_index(folder, read, packed.pixel_digests)))


def _merge_copies(read: DataRead, packed: _Packed) -> None:
    """Of equal pictures the first stays, with the labels of all; changes `read` and `packed`."""
    first: dict[tuple[str, bytes], int] = {}
    kept, digests, size = array("q"), bytearray(), len(packed.pixel_digests) // len(packed.good)
    for place, row in enumerate(packed.good):
        pixels = bytes(packed.pixel_digests[place * size : (place + 1) * size])
        if (same := first.setdefault((read.splits[row], pixels), row)) == row:
            kept.append(row)
            digests += pixels
        else:
            read.labels_NK[same] |= read.labels_NK[row]
    if copies := len(packed.good) - len(kept):
        read.notes.append(
            f"{copies} copies of pictures in other folders are merged: one image, all its labels"
        )
    packed.good, packed.pixel_digests = kept, digests


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
    """The result of decoding; rows and digests are those of the good images, one after another."""

    good: array[int] = field(default_factory=lambda: array("q"))
    pixel_digests: bytearray = field(default_factory=bytearray)


def _decode(
    files: Files, folder: Path, preparation: Preparation, workers: int, problems: Problems
) -> _Packed:
    """Decode every image into the pixel files of `folder`; bad ones leave gaps, and are in `problems`."""
    packed = _Packed()
    started = shown = time.monotonic()
    done, total = 0, len(files)
    for part in decode_all(files, folder, preparation, workers):
        packed.pixel_digests += b"".join(part.digests)
        names = [member for _, member in files[done : done + part.count]]
        problems.undecodable += [f"{names[i]}: {reason}" for i, reason in part.bad]
        problems.constant += [names[i] for i in part.constant]
        problems.dark += [names[i] for i in part.dark]
        if preparation.range is None:
            problems.need_range += len({*part.dark} & {*part.deep})
        failed = {i for i, _ in part.bad}
        packed.good.extend(done + i for i in range(part.count) if i not in failed)
        done += part.count
        now = time.monotonic()
        report("packing image", done, total)
        if now - shown > _SAY_S or done == total:
            shown = now
            print(f"{done}/{total} images, {done / (now - started):.0f} images/s", flush=True)
    if not packed.good:
        raise DataError(
            f"{files[0][0]}: none of its {total} images can be decoded: {problems.undecodable[0]}"
        )
    return packed


def _write_index(folder: Path, read: DataRead, pixel_digests: bytearray) -> Index:
    """Write it as arrays for programs and as text for people."""

    def rows() -> Iterator[tuple[str, ...]]:
        size = len(pixel_digests) // len(read.images)
        for row, (image, split) in enumerate(zip(read.images, read.splits, strict=True)):
            yield (*image, split, pixel_digests[row * size : (row + 1) * size].hex())

    index = Index.of(rows())
    with atomic_write(folder / INDEX) as file:
        index.write(file)
    write_csv(folder / INDEX_CSV, ["row", *COLUMNS], ((row, *cells) for row, cells in enumerate(rows())))
    return index


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
