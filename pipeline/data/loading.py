"""Batches by row number. Rows and their order are a function of (seed, epoch, position) alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np
import numpy.typing as npt

from pipeline.data.packed import PackedSet
from pipeline.data.sampling import epoch_rows
from pipeline.errors import DataError
from pipeline.seeding import seeded

# B batch, H W pixels, C channels, K labels
Rows = npt.NDArray[np.int64]
Gather = Callable[[Rows], npt.NDArray[np.uint8]]  # rows to their pixels

# Part of every checkpoint. A change of the order of batches or of the random draws must raise it: a run
# that was started with another order is then refused, not continued with a mixture of both.
STREAM_VERSION = 2
_HUNG_S = 900.0  # a batch takes milliseconds; a file system that is failing over takes minutes


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

    @property
    def spans(self) -> list[slice]:
        """Which positions of an epoch each of its batches takes, the same in every epoch."""
        return list(itertools.starmap(slice, itertools.pairwise(_edges(self.images, self.batch_size))))

    def order(self, epoch: int) -> Rows:
        """The rows of `epoch` (0-based) by position."""
        found: Rows = seeded(self.seed, "order", epoch).permutation(self._rows(epoch))
        return found


def spans_in_order(images: int, batch_size: int) -> list[slice]:
    """Batches of so many images for scoring."""
    return [slice(start, min(start + batch_size, images)) for start in range(0, images, batch_size)]


def _edges(images: int, batch_size: int) -> list[int]:
    edges = [*range(0, images, batch_size), images]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]  # batch statistics of a single image are undefined: it joins the batch before
    return edges


def read_ahead(
    packed: PackedSet, order_N: Rows, spans: Sequence[slice], gather: Gather
) -> Iterator[npt.NDArray[np.uint8]]:
    """The pixels (B, H, W, C) of each span of `order_N`, the next one's read while this one is used."""
    if not spans:
        return
    wanted: SimpleQueue[Rows | None] = SimpleQueue()
    ready: SimpleQueue[npt.NDArray[np.uint8] | Exception] = SimpleQueue()
    # a daemon thread: one that hangs in a read must not keep the process from ending
    Thread(target=_read, args=(gather, wanted, ready), daemon=True).start()
    try:
        wanted.put(order_N[spans[0]])
        for following in [*spans[1:], None]:
            try:
                images_BHWC = ready.get(timeout=_HUNG_S)
            except Empty:
                raise DataError(
                    f"{packed.path}: no batch arrived in {_HUNG_S:g} s; the file system hangs. Start again when "
                    "it responds: training resumes from its last save"
                ) from None
            if isinstance(images_BHWC, Exception):
                raise images_BHWC
            if following is not None:
                wanted.put(order_N[following])
            yield images_BHWC
    finally:
        wanted.put(None)


def _read(
    gather: Gather,
    wanted: SimpleQueue[Rows | None],
    ready: SimpleQueue[npt.NDArray[np.uint8] | Exception],
) -> None:
    while (rows := wanted.get()) is not None:
        try:
            ready.put(gather(rows))
        except Exception as error:  # noqa: BLE001 - raised again where the batch is awaited
            ready.put(error)
