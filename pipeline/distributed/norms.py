"""Batch norm whose statistics are those of the whole batch, over all ranks: on any device, for any kind of module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pipeline.distributed.rounds import Rounds

# B images of this rank, C channels, X what else there is, R ranks


class WholeBatchNorm(TorchFunctionMode):
    """While it is entered, `batch_norm` in training mode takes its statistics over the images of all ranks.

    torch's own SyncBatchNorm is for GPUs alone, and a module of another class for each kind. With `counts` False
    this rank's images take no part: there are none for it in the batch, and it runs one to keep step.
    """

    def __init__(self, rounds: Rounds, *, counts: bool) -> None:
        super().__init__()
        self.rounds, self.counts = rounds, counts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Everything else goes to torch as it is."""
        if func is functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *parameters: Any,
        **named: Any,
    ) -> Tensor:
        names = ("weight", "bias", "training", "momentum", "eps")
        given: dict[str, Any] = {
            "weight": None,
            "bias": None,
            "training": False,
            "momentum": 0.1,
            "eps": 1e-5,
        }
        given |= dict(zip(names, parameters, strict=False)) | named
        if not given["training"]:
            return functional.batch_norm(input, running_mean, running_var, **given)
        result, mean_C, var_C, count = _Normalised.apply(
            input, given["weight"], given["bias"], given["eps"], self
        )
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean_C.to(running_mean.dtype), given["momentum"])
                unbiased_C = var_C * (count / (count - 1))
                running_var.lerp_(unbiased_C.to(running_var.dtype), given["momentum"])
        found: Tensor = result
        return found


class _Normalised(torch.autograd.Function):
    """Normalised values and, for the running statistics, mean (C,), variance (C,) and number of values.

    Variances of ranks are joined as Chan, Golub & LeVeque (1983) do.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BCX: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        eps: float,
        mode: WholeBatchNorm,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x_BCX.shape[1]
        over = [axis for axis in range(x_BCX.ndim) if axis != 1]
        var_C, mean_C = torch.var_mean(x_BCX.float(), over, correction=0)
        own_1 = mean_C.new_full((1,), x_BCX.numel() // channels if mode.counts else 0)
        found_RX = mode.rounds.gather(torch.cat([mean_C, var_C, own_1]))
        mean_RC, var_RC, count_R1 = found_RX.split([channels, channels, 1], dim=1)
        count = count_R1.sum()
        mean_C = (mean_RC * count_R1).sum(dim=0) / count
        var_C = ((var_RC + (mean_RC - mean_C).square()) * count_R1).sum(dim=0) / count
        ctx.save_for_backward(x_BCX, weight_C, mean_C, var_C, count)
        ctx.eps, ctx.mode = eps, mode
        result = torch.batch_norm(x_BCX, weight_C, bias_C, mean_C, var_C, False, 0.0, eps, False)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return result, mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Of a batch norm in evaluation mode, less what a value changes mean and variance of all."""
        x_BCX, weight_C, mean_C, var_C, count = ctx.saved_tensors
        gradient_BCX = gradients[0]
        ones_C = torch.ones_like(mean_C) if weight_C is None else weight_C
        grad_BCX, sum_hat_C, sum_C = torch.ops.aten.native_batch_norm_backward(
            gradient_BCX, x_BCX, ones_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
        )
        sum_C, sum_hat_C = sum_C.float(), sum_hat_C.float()
        all_RX = ctx.mode.rounds.gather(torch.cat([sum_C, sum_hat_C]))
        whole_C, whole_hat_C = all_RX.sum(dim=0).split(len(mean_C))
        if not ctx.mode.counts:
            grad_BCX = torch.zeros_like(grad_BCX)
        else:
            inverse_C = torch.rsqrt(var_C + ctx.eps)
            slope_C = inverse_C * ones_C * inverse_C * whole_hat_C / count
            level_C = inverse_C * ones_C * whole_C / count - slope_C * mean_C
            shape = [1, -1] + [1] * (x_BCX.ndim - 2)
            mean_part = torch.addcmul(level_C.view(shape), x_BCX.float(), slope_C.view(shape))
            grad_BCX = grad_BCX - mean_part.to(grad_BCX.dtype)
        if weight_C is None:
            return grad_BCX, None, None, None, None
        return grad_BCX, sum_hat_C.to(weight_C.dtype), sum_C.to(weight_C.dtype), None, None
