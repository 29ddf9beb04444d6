"""Random changes of colour to a whole batch at once: jitter, and TrivialAugment's operations that move no pixel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.loading import Rows
from pipeline.data.transfer import EpochTable, to_device
from pipeline.seeding import seeded
from pipeline.spec import AugmentSpec

# B batch, C channels, H W pixels
Operation = Callable[[Tensor, Tensor], Tensor]  # float (B, C, H, W) in [0, 255] and a strength (B, 1, 1, 1)


class Colour:
    """The changes of colour of one epoch of one stream; draws are a function of (seed, epoch, position)."""

    def __init__(
        self,
        spec: AugmentSpec,
        seed: int,
        epoch: int,
        spans: Sequence[slice],
        positions_N: Rows | None = None,
    ) -> None:
        self.spec = spec
        self.jitter = {
            "brightness": spec.brightness,
            "contrast": spec.contrast,
            "saturation": spec.saturation,
        }
        self.active = spec.trivial_augment or any(self.jitter.values())
        if not self.active:
            return
        draws_N6 = drawn(seeded(seed, "colour", epoch), 6, spans, positions_N)
        self._draws_N6 = EpochTable(draws_N6)
        # the last choice changes nothing
        self._chosen_N = (draws_N6[:, 0] * np.float32(len(_TRIVIAL) + 1)).astype(np.int64)
        # sorted here and not on a device, where asking which pictures take an operation waits for the answer
        order_N = np.empty(len(draws_N6), np.int64)
        for span in spans:
            order_N[span] = np.argsort(self._chosen_N[span], kind="stable")
        self._order_N = EpochTable(order_N)

    def __call__(self, images_BHWC: Tensor, span: slice) -> Tensor:
        """uint8 (B, H, W, C) of a batch with changed colours, of the same shape."""
        if not self.active:
            return images_BHWC
        device = images_BHWC.device
        draws_B6 = self._draws_N6.at(span, device)
        images = images_BHWC.permute(0, 3, 1, 2).float()
        if self.spec.trivial_augment:
            counts = np.bincount(self._chosen_N[span], minlength=len(_TRIVIAL) + 1).tolist()
            rows = self._order_N.at(span, device).split(counts)
            images = trivial(images, rows, draws_B6[:, 1], draws_B6[:, 2] < 0.5)
        for column, (name, amount) in enumerate(self.jitter.items(), 3):
            if amount:
                factor = 1 + amount * (2 * draws_B6[:, column] - 1)
                images = OPERATIONS[name](images, factor[:, None, None, None].clamp_(min=0))
        return images.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def drawn(
    rng: np.random.Generator, numbers: int, spans: Sequence[slice], positions_N: Rows | None
) -> npt.NDArray[np.float32]:
    """(N, numbers) in [0, 1): a row for each position of an epoch up to the last span, or for `positions_N` of it.

    Rows are drawn in order, so that those of positions do not depend on how many follow them.
    """
    if positions_N is None:
        return rng.random((spans[-1].stop if spans else 0, numbers), dtype=np.float32)
    return rng.random((int(positions_N.max(initial=-1)) + 1, numbers), dtype=np.float32)[positions_N]


def trivial(images: Tensor, rows: Sequence[Tensor], strength_B: Tensor, down_B: Tensor) -> Tensor:
    """One operation an image, drawn with its strength (TrivialAugment Wide, Mueller & Hutter 2021).

    `rows` has the images of each operation in their order; `strength_B` lies in [0, 1), `down_B` weakens
    instead of strengthening. Shears, shifts and rotations are left out: `pipeline/data/augment.py` moves
    pixels.
    """
    signed_B = torch.where(down_B, -0.99 * strength_B, 0.99 * strength_B)
    images = images.clone()
    for name, own in zip(_TRIVIAL, rows, strict=False):
        if len(own):
            amount = strength_B if name in ("posterize", "solarize") else 1 + signed_B
            images[own] = OPERATIONS[name](images[own], amount[own][:, None, None, None])
    return images


@functools.cache
def _weights(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the channels in a grey picture, and of the neighbours in a blurred one; sent to a device once."""
    kernel = torch.ones((3, 1, 3, 3))
    kernel[:, :, 1, 1] = 5
    grey = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return to_device(grey, device), to_device(kernel / 13, device)


def _grey(images: Tensor) -> Tensor:
    return (images * _weights(images.device)[0]).sum(dim=1, keepdim=True)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + factor * (images - other)).clamp_(0, 255)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    blurred = images.clone()  # the border is not blurred
    # in half precision or TF32, where a network may use those, pixels would be rounded
    with torch.autocast(images.device.type, enabled=False), torch.backends.cudnn.flags(enabled=False):
        blurred[:, :, 1:-1, 1:-1] = functional.conv2d(images, _weights(images.device)[1], groups=3)
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
