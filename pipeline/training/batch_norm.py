"""Batch norm: where it has no statistics, and its running ones around a step that may have to be repeated."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.errors import TrainingError


def refuse_single_images(net: nn.Module, batch_size: int, name: str) -> None:
    """Batch norm has no statistics of one image, where its features are one pixel large; and bad ones of any."""
    if batch_size == 1 and _norms(net):
        raise TrainingError(
            f"train.batch_size: 1: {name} has batch norm, which takes its statistics from the images of a step; "
            "write 2 or more, or take a network without it (vit, swin, convnext)"
        )


def _norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class Statistics:
    """Running statistics of batch norm as they were before a step, for one that is repeated counts twice."""

    def __init__(self, net: nn.Module) -> None:
        norms = _norms(net)
        self.least_images = 2 if norms else 1  # at a time: there are no statistics of one
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        # one call a kind, so that it is one kernel
        self._now = [[b for b in buffers if b.dtype == kind] for kind in {b.dtype for b in buffers}]
        self._kept = [[b.clone() for b in same] for same in self._now]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them as they are."""
        for kept, now in zip(self._kept, self._now, strict=True):
            torch._foreach_copy_(kept, now)

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for kept, now in zip(self._kept, self._now, strict=True):
            torch._foreach_copy_(now, kept)
