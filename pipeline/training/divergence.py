"""How training stops being a number, and what to do about it."""

from __future__ import annotations

import math

import torch
from torch import nn

from pipeline.errors import DivergedError
from pipeline.training.losses import Loss, unsound_logits

_REMEDY = "try a lower train.optimizer.lr, a warm-up or clip_grad_norm. The last good checkpoint is kept"
_LEAST_SCALE = 2.0**-10  # 2**16 at the start, halved by each step that is not finite


class Watch:
    """Raises DivergedError once a loss, the weights or the scale of gradients are not finite or sound."""

    def __init__(self, loss: Loss, name: str, labels: int) -> None:
        self._loss, self._name, self._labels = loss, name, labels

    def loss(self, mean: float, step: int, epoch: int) -> float:
        """The mean loss itself, if it is a number."""
        if not math.isfinite(mean):
            raise DivergedError(
                f"the training loss became {mean} by step {step} (epoch {epoch}); {self._remedy()}"
            )
        return mean

    def weights(self, net: nn.Module, step: int, epoch: int) -> None:
        """A step can leave broken weights behind a finite loss: only the next loss would tell."""
        finite = torch.stack([torch.isfinite(value).all() for value in net.state_dict().values()])
        if not finite.all():
            raise DivergedError(
                f"the weights are not finite after step {step} (epoch {epoch}); {self._remedy()}"
            )

    def scale(self, scaler: torch.amp.GradScaler, step: int) -> dict[str, float]:
        """What there is to log of fp16's loss scale: it falls where no step's gradients are finite."""
        if not scaler.is_enabled():
            return {}
        scale = scaler.get_scale()
        if scale < _LEAST_SCALE:
            raise DivergedError(
                f"the loss scale of fp16 fell to {scale:g} by step {step}: no gradient was finite, every step was "
                "left out and nothing is learnt. Set train.precision to bf16 or fp32, or a lower "
                "train.optimizer.lr. The last good checkpoint is kept"
            )
        return {"train/loss_scale": scale}

    def _remedy(self) -> str:
        """What to do about a divergence: no lower rate helps where the loss itself is at fault."""
        logits = unsound_logits(self._loss, self._labels)
        if logits is None:
            return _REMEDY
        return (
            f"the loss {self._name} itself has no finite value or gradient at logits of {logits:g}: "
            "take another train.loss, or other settings of it. The last good checkpoint is kept"
        )
