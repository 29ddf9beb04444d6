"""The user's own code tried on two small batches before hours depend on it: what `doctor` says of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.own_augment import OwnAugmentation
from pipeline.errors import TrainingError
from pipeline.models.build import build_model, set_training_mode, trainable_part
from pipeline.own.frozen import telling
from pipeline.spec import TrainSpec
from pipeline.training.losses import build_loss, unsound_logits

_BATCH = 4  # pictures
_SANE = (-0.5, 1.5)  # of pictures in [0, 1]

# B batch, C channels, S pixels, K labels


def try_own(train: TrainSpec, key: str, labels: int, code: Path, weights: Path | None = None) -> str:
    """What was found of the user's function at a `key` of `own_calls`, tried on the CPU.

    Raises TrainingError with what is wrong with it.
    """
    if key == "train.model":
        return _try_network(train, labels, code, weights)
    return _try_loss(train, labels, code) if key == "train.loss" else _try_augmentation(train, code)


def _numbers(seed: int) -> None:
    """Generators that no cell keeps, at another place each time: code that draws from them cannot repeat itself."""
    random.seed(seed)
    np.random.seed(seed)


# ---------------------------------------------------------------- network


def _try_network(train: TrainSpec, labels: int, code: Path, weights: Path | None) -> str:
    def build() -> nn.Module:
        return build_model(train.model, labels, train.image_px, weights, code)

    pictures = torch.rand(2, _BATCH, 3, train.image_px, train.image_px, generator=_generator())
    targets = torch.randint(2, (2, _BATCH, labels), generator=_generator()).float()
    with telling("train.model"):
        first, net = _two_steps(train, build, pictures, targets, numbers=1)
        again, _ = _two_steps(train, build, pictures, targets, numbers=2)
        resumed, _ = _two_steps(train, build, pictures, targets, numbers=1, resumes=True)
        alone = _in_evaluation(net, pictures[0][:1])
        together = _in_evaluation(net, pictures[0])
    if not torch.equal(first, again):
        raise TrainingError(
            "two runs of one seed differ: draw random numbers with torch alone, and keep nothing outside of the network"
        )
    if not torch.equal(first, resumed):
        raise TrainingError(
            "continued from its saved state it goes on otherwise: keep all state in parameters and buffers "
            "(register_buffer)"
        )
    if not torch.allclose(alone[0], together[0], rtol=1e-2, atol=1e-3):
        raise TrainingError("in evaluation, logits of a picture depend on the other pictures of its batch")
    count = sum(parameter.numel() for parameter in net.parameters())
    what = f"{count:,} parameters, logits {tuple(together.shape)} at {train.image_px} px"
    return f"{what}, the same bits twice and resumed"


def _two_steps(
    train: TrainSpec,
    build: Callable[[], nn.Module],
    pictures: Tensor,
    targets: Tensor,
    *,
    numbers: int,
    resumes: bool = False,
) -> tuple[Tensor, nn.Module]:
    """(the logits of both steps, the network): `resumes` builds it anew between them, from its saved state."""
    _numbers(numbers)
    torch.manual_seed(train.seed)
    net, found = build(), []
    for step in (0, 1):
        if resumes and step:
            state = {name: value.clone() for name, value in net.state_dict().items()}
            torch.manual_seed(train.seed + 1)
            net = build()
            net.load_state_dict(state)
        learning = trainable_part(net, train.model)
        set_training_mode(net, learning)
        torch.manual_seed((train.seed << 32) + step)
        logits = net(pictures[step])
        found.append(logits.detach())
        if not torch.isfinite(found[-1]).all():
            raise TrainingError("logits of random pictures are not finite")
        net.zero_grad(set_to_none=True)
        functional.binary_cross_entropy_with_logits(logits.float(), targets[step]).backward()
        _refuse_unreached(net)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.01)
    return torch.stack(found), net


def _refuse_unreached(net: nn.Module) -> None:
    learns = {name: p for name, p in net.named_parameters() if p.requires_grad}
    unreached = [name for name, parameter in learns.items() if parameter.grad is None]
    if unreached:
        raise TrainingError(
            f"no gradient reaches {', '.join(unreached[:5])}{' and others' if len(unreached) > 5 else ''}: use "
            "these parameters in forward, or remove them"
        )
    broken = [name for name, p in learns.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
    if broken:
        raise TrainingError(f"the gradient of {broken[0]} is not finite")


@torch.inference_mode()
def _in_evaluation(net: nn.Module, pictures_BCSS: Tensor) -> Tensor:
    logits: Tensor = net.eval()(pictures_BCSS)
    return logits


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# ---------------------------------------------------------------- loss, augmentation


def _try_loss(train: TrainSpec, labels: int, code: Path) -> str:
    targets_BK = torch.randint(2, (_BATCH, labels), generator=_generator())
    logits_BK = torch.randn(_BATCH, labels, generator=_generator()).requires_grad_()
    values = []
    with telling("train.loss"):
        loss = build_loss(train.loss, targets_BK.numpy().astype(np.uint8), code=code)
        for numbers in (1, 2):
            _numbers(numbers)
            torch.manual_seed(0)
            values.append(loss(logits_BK, targets_BK.float()))
            loss(logits_BK[:2], targets_BK[:2].float())  # which a second call must not remember
        twice = loss(torch.cat([logits_BK] * 2), torch.cat([targets_BK] * 2).float())
        unsound = unsound_logits(loss, labels) if values[0].requires_grad else None
    if not torch.isfinite(values[0]):
        raise TrainingError(f"it is {float(values[0].detach())} for usual logits")
    if not values[0].requires_grad:
        raise TrainingError("it has no gradient: compute it of the logits, with torch")
    if not torch.equal(*values):
        raise TrainingError(
            "two calls with the same logits differ: a loss keeps no state, and draws with torch alone"
        )
    if not torch.allclose(values[0], twice, rtol=0.2):
        raise TrainingError("it grows with the batch: return a mean over pictures, not a sum")
    if unsound is not None:
        raise TrainingError(
            f"it, or its gradient, is not finite at logits of {unsound:g}: use torch's functions of logits"
        )
    return (
        f"{float(values[0].detach()):.4g} for random logits, finite up to logits of 100, the same bits twice"
    )


def _try_augmentation(train: TrainSpec, code: Path) -> str:
    assert train.augment.own is not None
    images_BCSS = torch.rand(_BATCH, 3, train.image_px, train.image_px, generator=_generator())
    own = OwnAugmentation(train.augment.own, train.seed, 0, code)
    found = []
    with telling("train.augment.own"):
        for numbers in (1, 2):
            _numbers(numbers)
            torch.manual_seed(numbers)
            found.append(own.changed(images_BCSS.clone(), first=0))
    low, high = float(found[0].min()), float(found[0].max())
    if not torch.isfinite(found[0]).all():
        raise TrainingError("pictures it returns are not finite")
    if not torch.equal(*found):
        raise TrainingError(
            "two calls of one draw differ: draw from the generator that it is given alone, and keep no state"
        )
    if low < _SANE[0] or high > _SANE[1]:
        raise TrainingError(f"pictures in [0, 1] become [{low:.3g}, {high:.3g}]: return values in [0, 1]")
    return f"pictures in [0, 1] become [{low:.3g}, {high:.3g}], the same bits twice"
