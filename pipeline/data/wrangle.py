"""Images and labels into a packed set: decoded once, upright and RGB, in one pass over all cores."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import Decoded, decode_chunk, open_in_worker
from pipeline.data.labels import LabelTable, read_labels, to_multi_hot
from pipeline.data.layout import (
    DATASET,
    IMAGES,
    INDEX,
    LABELS,
    PACK_VERSION,
    REPORT,
    Origin,
    is_whole,
    packed_identity,
    packed_path,
)
from pipeline.data.sources import ImageRef, finder, list_images, open_source
from pipeline.data.wrangle_report import Problems, build_report, refuse_if_bad, summary
from pipeline.errors import DataError, PipelineError
from pipeline.files import atomic_write, sha256_file, umask, write_failed, write_json
from pipeline.host import cores
from pipeline.spec import DataSpec

# N images, K labels
_CHUNK = 64  # images a task: large enough to hide its hand-over, small enough for even work
_SHARD_BYTES = 4 << 30


def wrangle(data: DataSpec, data_root: Path, *, test: bool = False, workers: int | None = None) -> Path:
    """Pack the images and labels of a spec under `data_root`, unless that is done; returns the folder.

    The folder appears whole or not at all. Raises DataError when more than `max_bad_share` of the
    images cannot be used, or of the labels' references name no image; what is below is set aside and
    listed in `wrangle_report.json`.
    """
    identity = packed_identity(data, data_root / "digests", test=test)
    target = packed_path(data_root, identity)
    if is_whole(target, identity.digest):
        return target
    origin = Origin.of(data, test=test)
    source = open_source(origin.source)
    images, unlisted = list_images(source, origin.images, origin.image_list)
    find_any = finder(list_images(source, origin.images)[0])
    source.close()
    table = _labels(origin)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise PipelineError(write_failed(target, error)) from error
    try:
        folder.chmod(0o777 & ~umask())
        images, outside = _mentioned(images, table)
        packed = _Packing(folder, data, images)
        packed.decode(origin.source, workers or cores())
        if len(packed.good) == 0:
            raise DataError(
                f"{origin.source}: none of its {len(images)} images can be decoded: {packed.bad[0]}"
            )
        kept = [images[row] for row in packed.good]
        labels_NK, unknown = to_multi_hot(table, len(images), finder(images))
        labels_NK = labels_NK[packed.good]
        unknown = [(label, reference) for label, reference in unknown if find_any(reference) is None]
        problems = Problems(packed.bad, unlisted, outside, unknown)
        report = build_report([i.name for i in kept], packed.pixel_digests, problems, table, labels_NK)
        refuse_if_bad(report, table, data, origin, test=test)
        packed.finish(kept, labels_NK)
        write_json(folder / REPORT, report)
        dataset = {
            "version": PACK_VERSION,
            "digest": identity.digest,
            "source": str(origin.source),
            "images": len(kept),
            "size_px": data.size_px,
            "resize": data.resize,
            "labels": table.labels,
            "shards": packed.shards,
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                for path in sorted(folder.iterdir())
            },
        }
        write_json(folder / DATASET, dataset)
        _put_in_place(folder, target, identity.digest)
    except OSError as error:
        raise PipelineError(write_failed(target, error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(summary(report), flush=True)
    return target


def _labels(origin: Origin) -> LabelTable:
    if origin.labels is None or origin.labels_source is None:
        return LabelTable([], {})
    source = open_source(origin.labels_source)
    try:
        return read_labels(source, origin.labels)
    finally:
        source.close()


def _mentioned(images: list[ImageRef], table: LabelTable) -> tuple[list[ImageRef], list[str]]:
    """The images the label file speaks of, and the names of those it does not: not blank, but unknown."""
    if table.mentioned is None:
        return images, []
    find = finder(images)
    rows = {find(reference) for reference in table.mentioned}
    inside = [image for row, image in enumerate(images) if row in rows]
    return inside, [image.name for row, image in enumerate(images) if row not in rows]


class _Packing:
    """The pixel files in the making: one sequential writer, fed by decoding processes."""

    def __init__(self, folder: Path, data: DataSpec, images: Sequence[ImageRef]) -> None:
        self.folder, self.data, self.images = folder, data, images
        self.good: list[int] = []
        self.bad: list[str] = []
        self.pixel_digests: list[str] = []
        self.per_shard = max(1, _SHARD_BYTES // (3 * data.size_px**2))
        self.shards: list[str] = []

    def decode(self, source: Path, workers: int) -> None:
        """Decode every image and write the good ones in their order."""
        started = shown = time.monotonic()
        done = 0
        with contextlib.ExitStack() as stack:
            writer = _ShardWriter(self, stack)
            for part in self._decoded(source, workers):
                writer.write(part.pixels_NHWC)
                self.pixel_digests += part.digests
                self.bad += [f"{self.images[done + i].member}: {reason}" for i, reason in part.bad]
                failed = {i for i, _ in part.bad}
                self.good += [done + i for i in range(part.count) if i not in failed]
                done += part.count
                now = time.monotonic()
                if now - shown > 0.5 or done == len(self.images):
                    shown = now
                    rate = done / (now - started)
                    print(f"{done}/{len(self.images)} images, {rate:.0f} images/s", flush=True)
            writer.close()

    def finish(self, kept: Sequence[ImageRef], labels_NK: npt.NDArray[np.uint8]) -> None:
        """Write labels and index."""
        with atomic_write(self.folder / LABELS) as file:
            np.save(file, labels_NK)
        with atomic_write(self.folder / INDEX, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["row", "id", "name", "pixels"])
            for row, (image, pixels) in enumerate(zip(kept, self.pixel_digests, strict=True)):
                writer.writerow([row, image.id, image.name, pixels])

    def _decoded(self, source: Path, workers: int) -> Iterator[Decoded]:
        members = [image.member for image in self.images]
        chunks = [members[start : start + _CHUNK] for start in range(0, len(members), _CHUNK)]
        # spawned, not forked: a fork of a process with threads can hang
        pool = ProcessPoolExecutor(
            max(1, min(workers, len(chunks))), get_context("spawn"), open_in_worker, (str(source),)
        )
        pending: deque[Future[Decoded]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(decode_chunk, chunk, self.data.size_px, self.data.resize))
                if len(pending) >= 3 * workers:  # bounds the memory when the disk is the slow part
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{source}: a decoding process died near image {len(self.good) + len(self.bad)} of {len(members)} "
                "(out of memory, or a file that crashes the decoder)"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _ShardWriter:
    """Writes pixels into `.npy` files of a bounded size; the header is set when a file's length is known."""

    def __init__(self, packing: _Packing, stack: contextlib.ExitStack) -> None:
        self.packing, self.stack = packing, stack
        self.file: Any = None
        self.rows = 0

    def write(self, pixels_NHWC: npt.NDArray[np.uint8]) -> None:
        while len(pixels_NHWC):
            if self.file is None:
                self._open()
            room = self.packing.per_shard - self.rows
            self.file.write(pixels_NHWC[:room].tobytes())
            self.rows += len(pixels_NHWC[:room])
            pixels_NHWC = pixels_NHWC[room:]
            if self.rows == self.packing.per_shard:
                self.close()

    def close(self) -> None:
        """End the present file."""
        if self.file is None:
            return
        self.file.seek(0)
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.file = None

    def _open(self) -> None:
        name = IMAGES.format(len(self.packing.shards))
        self.file = self.stack.enter_context((self.packing.folder / name).open("wb"))
        self.packing.shards.append(name)
        self.rows = 0
        self._header()

    def _header(self) -> None:
        size = self.packing.data.size_px
        # numpy leaves room for a growing first dimension, so both headers are equally long
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.rows, size, size, 3)}
        np.lib.format.write_array_header_1_0(self.file, header)


def _put_in_place(folder: Path, target: Path, digest: str) -> None:
    for _ in range(2):
        try:
            folder.rename(target)
            return
        except OSError:
            if not target.exists() or is_whole(target, digest):
                break  # another process was first, or the disk refuses
            shutil.rmtree(target)  # left damaged by something else than us
    if not is_whole(target, digest):
        folder.rename(target)
