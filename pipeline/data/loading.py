"""Batches by row number. Rows and their order are a function of (seed, epoch, position) alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.packed import PackedSet
from pipeline.data.sampling import epoch_rows
from pipeline.errors import DataError
from pipeline.seeding import seeded

# B batch, H W pixels, C channels, K labels
Rows = npt.NDArray[np.int64]

# Part of every checkpoint. A change of the order of batches or of the random draws must raise it: a run
# that was started with another order is then refused, not continued with a mixture of both.
STREAM_VERSION = 2
_HUNG_S = 900.0  # a batch takes milliseconds; a file system that is failing over takes minutes


@dataclass(frozen=True)
class Batch:
    """Some images of one epoch: their positions in its order, rows in the packed set, pixels, labels.

    With `read=False` it has no pixels; the reader has them elsewhere.
    """

    positions_B: Rows
    rows_B: Rows
    images_BHWC: npt.NDArray[np.uint8]
    targets_BK: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Stream:
    """Training batches of a packed set, epoch by epoch; cells with an equal stream can share it."""

    packed: PackedSet
    rows: Rows
    batch_size: int
    seed: int
    repeats_N: npt.NDArray[np.float64] | None = None  # how often a row is used in an epoch; None: once

    @property
    def images(self) -> int:
        """Positions in an epoch, the same in every one."""
        return len(self._rows(0))

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return len(_edges(self.images, self.batch_size)) - 1

    def _rows(self, epoch: int) -> Rows:
        return (
            self.rows if self.repeats_N is None else epoch_rows(self.rows, self.repeats_N, self.seed, epoch)
        )

    def batches(self, epoch: int, first_step: int = 0, *, read: bool = True) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from `first_step` on; the next one is read ahead."""
        order = seeded(self.seed, "order", epoch).permutation(self._rows(epoch))
        edges = _edges(len(order), self.batch_size)[first_step:]
        spans = [np.arange(start, stop) for start, stop in itertools.pairwise(edges)]
        yield from _batches(self.packed, [(span, order[span]) for span in spans], read=read)


def in_order(packed: PackedSet, rows: Rows, batch_size: int, *, read: bool = True) -> Iterator[Batch]:
    """Batches of `rows` in the given order, for scoring."""
    starts = range(0, len(rows), batch_size)
    spans = [np.arange(start, min(start + batch_size, len(rows))) for start in starts]
    yield from _batches(packed, [(span, rows[span]) for span in spans], read=read)


def _edges(images: int, batch_size: int) -> list[int]:
    edges = [*range(0, images, batch_size), images]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]  # batch statistics of a single image are undefined: it joins the batch before
    return edges


def _batches(packed: PackedSet, plan: list[tuple[Any, Rows]], *, read: bool) -> Iterator[Batch]:
    if read and plan:
        yield from _read_ahead(packed, plan)
    elif plan:
        no_pixels = np.empty((0, packed.size_px, packed.size_px, 3), np.uint8)
        yield from (Batch(spot, rows, no_pixels, packed.labels_NK[rows]) for spot, rows in plan)


def _read_ahead(packed: PackedSet, plan: list[tuple[Any, Rows]]) -> Iterator[Batch]:
    wanted: SimpleQueue[tuple[Any, Rows] | None] = SimpleQueue()
    ready: SimpleQueue[Batch | Exception] = SimpleQueue()
    # a daemon thread: one that hangs in a read must not keep the process from ending
    Thread(target=_read, args=(packed, wanted, ready), daemon=True).start()
    try:
        wanted.put(plan[0])
        for following in [*plan[1:], None]:
            try:
                batch = ready.get(timeout=_HUNG_S)
            except Empty:
                raise DataError(
                    f"{packed.path}: no batch arrived in {_HUNG_S:g} s; the file system hangs. Start again when "
                    "it responds: training resumes from its last save"
                ) from None
            if isinstance(batch, Exception):
                raise batch
            if following is not None:
                wanted.put(following)
            yield batch
    finally:
        wanted.put(None)


def _read(
    packed: PackedSet,
    wanted: SimpleQueue[tuple[Any, Rows] | None],
    ready: SimpleQueue[Batch | Exception],
) -> None:
    while (plan := wanted.get()) is not None:
        positions, rows = plan
        try:
            ready.put(Batch(positions, rows, packed.gather(rows), packed.labels_NK[rows]))
        except Exception as error:  # noqa: BLE001 - raised again where the batch is awaited
            ready.put(error)
