"""Random changes of colour to a whole batch at once: jitter, and TrivialAugment's operations that move no pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.seeding import seeded
from pipeline.spec import AugmentSpec

# B batch, C channels, H W pixels
Operation = Callable[[Tensor, Tensor], Tensor]  # float (B, C, H, W) in [0, 255] and a strength (B, 1, 1, 1)


class Colour:
    """The changes of colour of one epoch of one stream; draws are a function of (seed, epoch, position)."""

    def __init__(self, spec: AugmentSpec, seed: int, epoch: int, images: int) -> None:
        self.spec = spec
        self.jitter = {
            "brightness": spec.brightness,
            "contrast": spec.contrast,
            "saturation": spec.saturation,
        }
        self.active = spec.trivial_augment or any(self.jitter.values())
        if self.active:
            self.draws_N6 = seeded(seed, "colour", epoch).random((images, 6), dtype=np.float32)

    def __call__(self, images_BHWC: Tensor, positions_B: np.typing.NDArray[np.int64]) -> Tensor:
        """uint8 (B, H, W, C) with changed colours, of the same shape."""
        if not self.active:
            return images_BHWC
        draws_B6 = torch.from_numpy(self.draws_N6[positions_B]).to(images_BHWC.device)
        images = images_BHWC.permute(0, 3, 1, 2).float()
        if self.spec.trivial_augment:
            images = trivial(images, draws_B6[:, 0], draws_B6[:, 1], draws_B6[:, 2] < 0.5)
        for column, (name, amount) in enumerate(self.jitter.items(), 3):
            if amount:
                factor = 1 + amount * (2 * draws_B6[:, column] - 1)
                images = OPERATIONS[name](images, factor[:, None, None, None].clamp_(min=0))
        return images.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def trivial(images: Tensor, which_B: Tensor, strength_B: Tensor, down_B: Tensor) -> Tensor:
    """One operation an image, drawn with its strength (TrivialAugment Wide, Mueller & Hutter 2021).

    `which_B` and `strength_B` lie in [0, 1); `down_B` weakens instead of strengthening. Shears,
    shifts and rotations are left out: `pipeline/data/augment.py` moves pixels.
    """
    signed_B = torch.where(down_B, -0.99 * strength_B, 0.99 * strength_B)
    chosen_B = (which_B * (len(_TRIVIAL) + 1)).long()  # the last choice changes nothing
    images = images.clone()
    for index, name in enumerate(_TRIVIAL):
        (rows,) = torch.nonzero(chosen_B == index, as_tuple=True)
        if len(rows):
            amount = strength_B if name in ("posterize", "solarize") else 1 + signed_B
            images[rows] = OPERATIONS[name](images[rows], amount[rows][:, None, None, None])
    return images


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + factor * (images - other)).clamp_(0, 255)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    kernel = torch.ones((3, 1, 3, 3), device=images.device)
    kernel[:, :, 1, 1] = 5
    blurred = images.clone()  # the border is not blurred
    blurred[:, :, 1:-1, 1:-1] = functional.conv2d(images, kernel / 13, groups=3)
    return _blend(images, blurred, factor)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    step = 2 ** (strength * 6).round()  # keeps 8 to 2 bits
    return (images / step).floor() * step


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images >= 255 * (1 - strength), 255 - images, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * 255 / (high - low).clamp(min=1), images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel's histogram made flat, as Pillow does."""
    from torchvision.transforms.v2.functional import equalize  # its import takes seconds

    flat: Tensor = equalize(images.round().to(torch.uint8))
    return flat.to(images.dtype)


OPERATIONS: dict[str, Operation] = {
    "brightness": lambda images, factor: (images * factor).clamp_(0, 255),
    "contrast": lambda images, factor: _blend(images, _grey(images).mean(dim=(2, 3), keepdim=True), factor),
    "saturation": lambda images, factor: _blend(images, _grey(images), factor),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
_TRIVIAL = tuple(OPERATIONS)
