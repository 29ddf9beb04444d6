"""The processes of one cell, its ranks: what they agree on, and what they gather and add up.

Rank 0 leads: it alone writes the cell's folder. A rank that ends or falls silent is met by the others as a
LostRankError: at once where its connection closes, else after `SILENT_S`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

from pipeline.errors import LostRankError

# N rows, M those of a rank, K labels
SILENT_S = 600.0  # rank 0 may write to a slow disk while the others wait for it
WAIT_S = 1800.0  # nodes import at different speeds, and verify or copy data for themselves
_POLL_S = 0.05
_ASK_S = 1.0  # between two looks at a file of the shared disk
_LOST = "lost"  # what a rank that ends early says
_BUCKET_BYTES = 32 << 20  # of gradients, added up at a time: all at once would be their memory again


class Group:
    """The ranks of a cell; alone (`SOLO`), every method is the identity."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: Any = None,
        lost: Callable[[], str] = str,
        *,
        connected: bool = True,
    ) -> None:
        """`lost` gives why one that can no longer say it itself is gone; "" while none is known to be."""
        self.rank, self.size, self._store, self._lost = rank, size, store, lost
        self.exchanged_s = 0.0  # spent with the others; what a GPU does meanwhile is not waited for
        # what is agreed on is on the host: no GPU is waited for
        is_nccl = size > 1 and connected and distributed.get_backend() == "nccl"
        own: Any = (
            distributed.new_group(backend="gloo", timeout=timedelta(seconds=SILENT_S)) if is_nccl else None
        )
        self._host = own

    @property
    def leads(self) -> bool:
        """Whether this rank owns the cell's folder."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it is set on any rank; all must ask at the same point. Also a place to meet."""
        if self.size == 1:
            return flag
        found = torch.tensor([int(flag)], dtype=torch.int32)
        with self._watched():
            distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self._host)
        return bool(found)

    def from_leader(self, value: Any) -> Any:
        """What rank 0 gives; the others' own is ignored."""
        if self.size == 1:
            return value
        held = [value if self.leads else None]
        with self._watched():
            distributed.broadcast_object_list(held, src=0, group=self._host)
        return held[0]

    def weights_from_leader(self, net: nn.Module) -> None:
        """Those of rank 0 into the network of every rank, in place."""
        if self.size == 1:
            return
        with self._watched(), torch.no_grad():
            for value in net.state_dict().values():
                dense = value.contiguous()
                distributed.broadcast(dense, src=0)
                value.copy_(dense)

    def own_rows(self, count: int) -> npt.NDArray[np.int64]:
        """(M,): which of `count` rows this rank takes, at least one; together all of them, for `whole`."""
        return np.arange(self.rank if self.rank < count else 0, count, self.size)

    def whole(self, own_MK: Tensor, count: int) -> Tensor:
        """(N, K) on the host, of what each rank made of its `own_rows` of `count` ones, in their order."""
        if self.size == 1:
            return own_MK
        most = -(-count // self.size)
        padded = own_MK.new_zeros((most, *own_MK.shape[1:]))
        padded[: min(len(own_MK), most)] = own_MK[:most]
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with self._watched():
            distributed.all_gather(parts, padded, group=self._host)
        found = own_MK.new_empty((count, *own_MK.shape[1:]))
        for rank, part in enumerate(parts):
            found[rank :: self.size] = part[: len(range(rank, count, self.size))]
        return found

    def each(self, mine_BX: Tensor | None, lengths: Sequence[int]) -> Iterator[Tensor]:
        """(B, ...) on the host of rank 0, 1 ... as many as there are `lengths`, which are theirs; None: beyond them."""
        if self.size == 1:
            assert mine_BX is not None
            yield mine_BX
            return
        form = None if mine_BX is None else (mine_BX.shape[1:], mine_BX.dtype)
        shape, kind = self.from_leader(form)
        padded_BX = torch.zeros((max(lengths), *shape), dtype=kind)
        if mine_BX is not None:
            padded_BX[: len(mine_BX)] = mine_BX
        sent = padded_BX.view(torch.uint8)  # gloo does not know every kind of number
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        with self._watched():
            distributed.all_gather(parts, sent, group=self._host)
        for part, length in zip(parts, lengths, strict=False):
            yield part.view(kind)[:length]

    def gather(self, into: Sequence[Tensor], mine: Tensor) -> None:
        """Each rank's values into a tensor of `into`, on the device."""
        with self._watched():
            distributed.all_gather(list(into), mine)

    @torch.no_grad()
    def add_up(self, net: nn.Module) -> None:
        """The gradients of a network summed over the ranks, in place; the same bits on each."""
        bucket: list[Tensor] = []
        held = 0
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        for i, gradient in enumerate(gradients):
            bucket.append(gradient)
            held += gradient.nbytes
            if held < _BUCKET_BYTES and i + 1 < len(gradients):
                continue
            flat = torch.cat([each.reshape(-1) for each in bucket])
            with self._watched():
                distributed.all_reduce(flat)
            parts = flat.split([each.numel() for each in bucket])
            for each, part in zip(bucket, parts, strict=True):
                each.copy_(part.view(each.shape))
            bucket, held = [], 0

    def meet(self, what: str, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Wait for all, as long as it takes them (`WAIT_S`); False once `stopped` says so."""
        if self._store is None:
            return True
        asked, deadline = time.monotonic(), time.monotonic() + WAIT_S
        names = [f"{what}/{number}" for number in range(self.size)]
        with self._watched():
            self._store.set(names[self.rank], "")
            while not self._store.check(names):
                if self._store.check([_LOST]):
                    raise RuntimeError("while it was waited for")
                if time.monotonic() > asked + _ASK_S:
                    if reason := self._lost():
                        raise RuntimeError(reason)
                    asked = time.monotonic()
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not all {self.size} have come within {WAIT_S:g} s")
                if stopped():
                    return False
                time.sleep(_POLL_S)
        return True

    def abandon(self, reason: str) -> None:
        """Tell the others why this rank ends before its time."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # rank 0 is gone itself
                self._store.set(_LOST, f"rank {self.rank}: {reason}")

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
            self.exchanged_s += time.perf_counter() - began
        except RuntimeError as error:  # of the connection
            reason = (
                str(error).splitlines()[0].partition(".cc:")[2] or str(error).splitlines()[0]
            )  # gloo's own place
            with contextlib.suppress(RuntimeError):
                if self._store is not None and self._store.check([_LOST]):
                    reason = self._store.get(_LOST).decode()
            raise LostRankError(
                f"another process of this cell ended or fell silent ({reason[:160]})"
            ) from error


SOLO = Group()
