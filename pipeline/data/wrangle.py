"""Pack images and labels: every image is decoded once, upright and RGB, in one pass over all cores."""

from __future__ import annotations

import contextlib
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
from pipeline.data.labels import LabelTable, read_labels, to_multi_hot
from pipeline.data.layout import (
    DATASET,
    INDEX,
    LABELS,
    PACK_VERSION,
    REPORT,
    is_complete,
    labels_source,
    origin,
    packed_identity,
    packed_path,
)
from pipeline.data.pixel_files import PixelFiles
from pipeline.data.sources import ImageRef, Source, finder, list_images, open_source
from pipeline.data.wrangle_report import Problems, build_report, refuse_if_bad, summary
from pipeline.errors import DataError, PipelineError
from pipeline.spec import DataSpec, TestSpec
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

    The folder appears complete or not at all. Raises DataError when more than `set_aside` of the
    images are unusable, or of the labels' references name no image. Fewer are set aside and listed in
    `wrangle_report.json`.
    """
    identity = packed_identity(data, data_root / "digests", test=test)
    target = packed_path(data_root, identity)
    if is_complete(target, identity.digest):
        return target
    part = origin(data, test=test)
    source_path = Path(part.source)
    with contextlib.closing(open_source(source_path)) as source:
        images, unlisted = list_images(source, part.images, part.image_list)
        find_any = finder(list_images(source, part.images)[0] if part.image_list else images)
        table = _labels(part, source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(target)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise PipelineError(write_failed(target, error)) from error
    try:
        folder.chmod(0o777 & ~umask())
        images, outside = _mentioned(images, table)
        packed = _decode(source_path, folder, data, images, workers or cores())
        kept = [images[row] for row in packed.good]
        labels_NK, unknown = to_multi_hot(table, len(images), finder(images))
        labels_NK = labels_NK[packed.good]
        unknown = [(label, reference) for label, reference in unknown if find_any(reference) is None]
        problems = Problems(packed.bad, unlisted, outside, unknown)
        report = build_report([i.name for i in kept], packed.pixel_digests, problems, table, labels_NK)
        refuse_if_bad(report, table, data, source_path, test=test)
        with atomic_write(folder / LABELS) as file:
            np.save(file, labels_NK)
        _write_index(folder, kept, packed.pixel_digests)
        write_json(folder / REPORT, report)
        dataset = {
            "version": PACK_VERSION,
            "digest": identity.digest,
            "source": str(source_path),
            "images": len(kept),
            "size_px": data.size_px,
            "resize": data.resize,
            "labels": table.labels,
            "files": _flushed(sorted(folder.iterdir())),
        }
        write_json(folder / DATASET, dataset)
        _put_in_place(folder, target, identity.digest)
    except OSError as error:
        raise PipelineError(write_failed(target, error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(summary(report), flush=True)
    return target


def _labels(part: DataSpec | TestSpec, images_source: Source) -> LabelTable:
    if part.labels is None:
        return LabelTable([], {})
    path = labels_source(part)
    with contextlib.ExitStack() as stack:
        source = images_source
        if path != source.path:
            source = stack.enter_context(contextlib.closing(open_source(path)))
        return read_labels(source, part.labels)


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


def _mentioned(images: list[ImageRef], table: LabelTable) -> tuple[list[ImageRef], list[str]]:
    """The images the label file mentions, and the names of the others: unknown labels, not negative images."""
    if table.mentioned is None:
        return images, []
    find = finder(images)
    rows = {find(reference) for reference in table.mentioned}
    inside = [image for row, image in enumerate(images) if row in rows]
    if not inside:
        place = next(iter(table.read_from.values()), "the label file")
        raise DataError(
            f"{place}: names none of the images: it has {table.mentioned[0]!r}, images are called "
            f"{images[0].id!r} ({images[0].name}); correct data.images or the ids"
        )
    return inside, [image.name for row, image in enumerate(images) if row not in rows]


@dataclass
class _Packed:
    """The result of decoding; rows and digests are those of the good images, in their order."""

    good: list[int] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    pixel_digests: list[str] = field(default_factory=list)


def _decode(source: Path, folder: Path, data: DataSpec, images: Sequence[ImageRef], workers: int) -> _Packed:
    """Decode every image into the pixel files of `folder`, without gaps."""
    packed = _Packed()
    started = shown = time.monotonic()
    done = 0
    for part in _decoded(source, folder, data, [image.member for image in images], workers):
        packed.pixel_digests += part.digests
        packed.bad += [f"{images[done + i].member}: {reason}" for i, reason in part.bad]
        failed = {i for i, _ in part.bad}
        packed.good += [done + i for i in range(part.count) if i not in failed]
        done += part.count
        now = time.monotonic()
        if now - shown > 0.5 or done == len(images):
            shown = now
            print(f"{done}/{len(images)} images, {done / (now - started):.0f} images/s", flush=True)
    if not packed.good:
        raise DataError(f"{source}: none of its {len(images)} images can be decoded: {packed.bad[0]}")
    pixels = PixelFiles(folder, data.size_px, writable=True)
    pixels.close_gaps(packed.good)
    pixels.finish(len(packed.good))
    return packed


def _decoded(
    source: Path, folder: Path, data: DataSpec, members: Sequence[str], workers: int
) -> Iterator[Decoded]:
    starts = range(0, len(members), _CHUNK)
    # spawned, not forked: a fork of a process with threads can hang
    pool = ProcessPoolExecutor(
        max(1, min(workers, len(starts))),
        get_context("spawn"),
        start_worker,
        (str(source), str(folder), data.size_px, data.resize),
    )
    try:
        yield from pool.map(decode_chunk, starts, [members[i : i + _CHUNK] for i in starts])
    except BrokenProcessPool as error:
        raise DataError(
            f"{source}: a decoding process died (out of memory, or a file that crashes the decoder)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_index(folder: Path, images: Sequence[ImageRef], pixel_digests: Sequence[str]) -> None:
    pairs = enumerate(zip(images, pixel_digests, strict=True))
    rows = ([row, image.id, image.name, pixels] for row, (image, pixels) in pairs)
    write_csv(folder / INDEX, ["row", "id", "name", "pixels"], rows)


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
