"""The user's own changes to training pictures: a function of a batch, whose draws are those of its place."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.transfer import to_device
from pipeline.errors import TrainingError
from pipeline.own.frozen import own_function
from pipeline.seeding import seeded
from pipeline.spec import OwnCall, OwnCode, Preprocessing
from pipeline.spec.own_code import Options

_KEY = "train.augment.own"

# B batch, C channels, S pixels


class OwnAugmentation:
    """A function of the user's own on the pictures of one epoch; `code` is its frozen copy.

    Its generator is seeded from (seed, epoch, the batch's first position), so that resuming repeats its draws.
    """

    def __init__(self, spec: OwnCode, seed: int, epoch: int, code: Path | None) -> None:
        self.name, self.seed, self.epoch = spec.name, seed, epoch
        self._function = own_function(code, OwnCall(_KEY, spec.name, Options(spec.options)), given=2)

    @torch.no_grad()
    def __call__(self, inputs_BCSS: Tensor, span: slice, preprocessing: Preprocessing) -> Tensor:
        """Normalised pictures to the same; the function itself sees RGB in [0, 1]."""
        mean, std = _channels(inputs_BCSS.device, preprocessing)
        changed_BCSS = self.changed(torch.addcmul(mean, inputs_BCSS, std), span.start)
        return (changed_BCSS - mean).div_(std).contiguous(memory_format=torch.channels_last)

    def changed(self, images_BCSS: Tensor, first: int) -> Tensor:
        """What the function makes of a batch in [0, 1] whose first picture has the position `first` in its epoch."""
        draw = seeded(self.seed, "own augment", self.epoch, first).integers(2**62)
        generator = torch.Generator(images_BCSS.device).manual_seed(int(draw))
        found = self._function(images_BCSS, generator)
        wanted = _kind(images_BCSS)
        if not isinstance(found, Tensor) or _kind(found) != wanted:
            what = _kind(found) if isinstance(found, Tensor) else type(found).__name__
            raise TrainingError(
                f"{_KEY}: {self.name} returned {what}; it must return what it is given, {wanted}"
            )
        return found


@functools.cache
def _channels(device: torch.device, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    mean, std = (to_device(torch.tensor(values).view(1, 3, 1, 1), device) for values in preprocessing[:2])
    return mean, std


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype)[6:]} {tuple(tensor.shape)} on {tensor.device}"
