"""What ranks exchange within a step: rounds of one size, so that a rank without memory can still join them.

Statistics of batch norm and logits are gathered while a network runs. A rank that runs out of GPU memory there
would leave the others waiting. As all rounds have one size, it joins those that are left with a flag instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from pipeline.distributed.group import Group

# R ranks, X values
_LEAST = 4096  # values of a round: 16 kB take no longer than few


class RankOutOfMemoryError(Exception):
    """Another rank of the cell has no room for this step."""


class Rounds:
    """The rounds of a cell's steps.

    How many a step has is known once one of its kind (`begin`) went through; until then the flags are looked at in
    every round, which makes a GPU's host wait.
    """

    def __init__(self, group: Group, net: nn.Module, device: str) -> None:
        self.group = group
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.width = max([_LEAST, *(2 * norm.num_features + 1 for norm in norms)])
        self._mine = torch.zeros(self.width + 1, device=device)
        self._all = torch.zeros(group.size, self.width + 1, device=device)
        self._usual: dict[Hashable, int] = {}
        self._kind: Hashable = None
        self._done = 0
        self._told = False  # by another rank that it has no room

    def begin(self, kind: Hashable) -> None:
        """A step, of whose kind all take the same rounds, on every rank."""
        self._kind, self._done, self._told = kind, 0, False

    def gather(self, values_X: Tensor) -> Tensor:
        """(R, X) float32: the values of every rank, which are as many on each."""
        found = []
        for part in values_X.split(self.width):
            self._mine[: len(part)] = part
            self._round()
            found.append(self._all[:, : len(part)].clone())
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def end(self, *, is_short: bool) -> bool:
        """The step is through or broke off, for want of memory here (`is_short`) or elsewhere; whether it did."""
        if is_short:
            self._mine[-1] = 1
            for _ in range(self._usual.get(self._kind, self._done + 1) - self._done):
                self._play()
            self._mine[-1] = 0
        elif self._kind not in self._usual and not self._told:
            done = self._done
            with contextlib.suppress(RankOutOfMemoryError):
                self._round()  # one that had no room after its last round joins this one
            self._done = done
        if not (is_short := self.group.any(is_short)):
            self._usual[self._kind] = self._done
        return is_short

    def _round(self) -> None:
        self._play()
        if self._kind not in self._usual and bool(self._all[:, -1].any()):
            self._told = True
            raise RankOutOfMemoryError

    def _play(self) -> None:
        self.group.gather(self._all.unbind(0), self._mine)
        self._done += 1
