"""Batches by row number. Which rows, in which order, is a function of (seed, epoch, position) alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.packed import PackedSet
from pipeline.data.seeding import seeded

# B batch, H W pixels, C channels, K labels
Rows = npt.NDArray[np.int64]

# Part of every checkpoint: a change of the order of batches or of the random draws must raise it, so
# that a run begun with another order is refused instead of continued into a mixture of both.
STREAM_VERSION = 2


@dataclass(frozen=True)
class Batch:
    """Some images of one epoch: their positions in its order, rows in the packed set, pixels, labels."""

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

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the last one perhaps smaller."""
        return len(_edges(len(self.rows), self.batch_size)) - 1

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from `first_step` on; the next one is read ahead."""
        order = seeded(self.seed, "order", epoch).permutation(self.rows)
        edges = _edges(len(order), self.batch_size)[first_step:]
        spans = [np.arange(start, stop) for start, stop in itertools.pairwise(edges)]
        yield from _read_ahead(self.packed, [(span, order[span]) for span in spans])


def in_order(packed: PackedSet, rows: Rows, batch_size: int) -> Iterator[Batch]:
    """Batches of `rows` as they come, for scoring."""
    starts = range(0, len(rows), batch_size)
    spans = [np.arange(start, min(start + batch_size, len(rows))) for start in starts]
    yield from _read_ahead(packed, [(span, rows[span]) for span in spans])


def _edges(images: int, batch_size: int) -> list[int]:
    edges = [*range(0, images, batch_size), images]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]  # batch statistics of a single image are undefined: it joins the batch before
    return edges


def _read_ahead(packed: PackedSet, plan: list[tuple[Any, Rows]]) -> Iterator[Batch]:
    def read(positions: Rows, rows: Rows) -> Batch:
        return Batch(positions, rows, packed.gather(rows), packed.labels_NK[rows])

    if not plan:
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(read, *plan[0])
        for following in [*plan[1:], None]:
            batch = pending.result()
            if following is not None:
                pending = pool.submit(read, *following)
            yield batch
