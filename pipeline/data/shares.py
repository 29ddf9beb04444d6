"""What one of several processes makes of an epoch's batches: its own pictures, and those that they are mixed with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loading import Rows
from pipeline.data.transfer import EpochTable

# N positions of an epoch, M those this process makes, B its own of a batch


class Share:
    """Of each batch (`spans`, of positions) every `size`th picture from the `rank`th on belongs to this process.

    `partner_N` names for each position the one that it is mixed with (itself: none), which perhaps another process
    has: it is made here too. A process without a picture in a batch takes the first one, which nobody counts.
    """

    def __init__(self, spans: Sequence[slice], rank: int, size: int, partner_N: Rows | None = None) -> None:
        self.own = own_positions(spans, rank, size)
        made: list[Rows] = []
        others: list[Rows] = []
        for own in self.own:
            own_B = np.arange(own.start, own.stop, own.step)
            partner_B = own_B if partner_N is None else partner_N[own_B]
            made.append(np.concatenate([own_B, np.setdiff1d(partner_B, own_B)]))
            order = np.argsort(made[-1])
            others.append(order[np.searchsorted(made[-1], partner_B, sorter=order)])
        self.positions_M: Rows = np.concatenate([*made, np.empty(0, np.int64)])
        self.made = _consecutive(made)  # of these, by batch
        self._others = EpochTable(np.concatenate([*others, np.empty(0, np.int64)]))
        self._other_spans = _consecutive(others)

    def others(self, number: int, device: torch.device) -> Tensor:
        """(B,): of each own picture of a batch the place, among those made for it, of the one it is mixed with."""
        return self._others.at(self._other_spans[number], device)


def own_positions(spans: Sequence[slice], rank: int, size: int) -> list[slice]:
    """Those of each batch that are a process's own, or its first one where there are fewer than processes."""
    starts = (span.start + rank if span.start + rank < span.stop else span.start for span in spans)
    return [
        slice(start, span.stop if start > span.start or not rank else start + 1, size)
        for start, span in zip(starts, spans, strict=True)
    ]


def _consecutive(parts: Sequence[Rows]) -> list[slice]:
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]
