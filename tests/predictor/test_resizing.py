"""Pillow's resize in torch: the same bits, whatever the sizes."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.decoding import Preparation, to_pixels
from pipeline.predictor.resizing import resized

SIDE = 48
# smaller, larger, both, far larger, so that blocks are averaged first, tall and broad, and one pixel
SIZES = [
    (20, 30), (90, 100), (30, 120), (120, 30), (480, 500), (700, 60), (61, 700), (97, 49), (48, 48), (191, 100), (1, 1),
    (193, 384), (150, 150), (96, 95),
]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_pillow(size, resize, interpolation):
    preparation = Preparation(SIDE, resize, interpolation=interpolation)
    image_HWC = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)
    wanted = to_pixels(Image.fromarray(image_HWC), preparation).astype(float)
    (found_CSS,) = resized(torch.from_numpy(image_HWC)[None], preparation)
    np.testing.assert_array_equal(found_CSS.permute(1, 2, 0).numpy(), wanted)


def test_pixels_are_those_of_pillow_whatever_the_sizes():
    """The rule for the direction that comes first was found by trying, so that many sizes are tried."""
    rng = np.random.default_rng(5)
    wrong = []
    for _ in range(240):
        side, (height, width) = int(rng.choice([16, 24, 32])), rng.integers(2, 150, 2)
        interpolation, resize = rng.choice(["bilinear", "bicubic"]), rng.choice(["squash", "crop"])
        preparation = Preparation(side, str(resize), interpolation=str(interpolation))
        image_HWC = rng.integers(0, 256, (height, width, 3), np.uint8)
        wanted = to_pixels(Image.fromarray(image_HWC), preparation)
        (found_CSS,) = resized(torch.from_numpy(image_HWC)[None], preparation)
        if (found_CSS.permute(1, 2, 0).numpy() != wanted).any():
            wrong.append((preparation, height, width))
    assert wrong == []
