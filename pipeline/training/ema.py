"""An exponential moving average of a network's weights, which is validated and kept instead of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average over the last `horizon_steps` or so; batch statistics are averaged like weights."""

    def __init__(self, net: nn.Module, horizon_steps: float) -> None:
        self.decay = 1 - 1 / max(horizon_steps, 1.0)
        self.net = copy.deepcopy(net).requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps; early on the average is shorter, to forget the beginning."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for mean, value in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if mean.is_floating_point():
                averaged.append(mean)
                current.append(value)
            else:
                mean.copy_(value)  # a counter of batches
        torch._foreach_lerp_(averaged, current, 1 - decay)
