"""Crops are distributed as torchvision's are."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop

from pipeline.data.augment import Augmentation
from pipeline.spec import AugmentSpec

DRAWS = 20_000
SIDE = 10_000  # torchvision's crops are whole pixels: of a picture this large that is no difference
DEFAULT_RATIO = (0.75, 4 / 3)
SHARP = 1.95 * np.sqrt(2 / DRAWS)  # what two samples of one distribution differ by once in a thousand times


def ours(scale, ratio):
    """(N, 4): width, height, left and top of crops, in sides of the picture."""
    augmentation = Augmentation(AugmentSpec(hflip=0.0, crop=scale, crop_ratio=ratio), 0, 0, [slice(0, DRAWS)])
    theta = augmentation.theta(augmentation.draws_N7).astype(np.float64)
    width, height = theta[:, 0, 0], theta[:, 1, 1]
    left, top = (1 + theta[:, 0, 2] - width) / 2, (1 + theta[:, 1, 2] - height) / 2
    return np.stack([width, height, left, top], axis=1)


def theirs(scale, ratio):
    torch.manual_seed(0)
    crop, picture = RandomResizedCrop(8, scale=scale, ratio=ratio), [torch.empty(1, SIDE, SIDE)]
    drawn = [crop.make_params(picture) for _ in range(DRAWS)]
    return np.array([[d["width"], d["height"], d["left"], d["top"]] for d in drawn]) / SIDE


def distance(one_N, other_N):
    """The Kolmogorov-Smirnov statistic: the largest difference of the two distributions."""
    one_N, other_N = np.sort(one_N.round(3)), np.sort(other_N.round(3))  # ties of whole crops stay ties
    at = np.concatenate([one_N, other_N])
    below = [np.searchsorted(values, at, side="right") / len(values) for values in (one_N, other_N)]
    return np.abs(below[0] - below[1]).max()


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        ((0.08, 1.0), DEFAULT_RATIO),
        ((0.35, 1.0), DEFAULT_RATIO),
        ((0.9, 1.0), DEFAULT_RATIO),
        ((1.0, 1.0), DEFAULT_RATIO),
        ((0.5, 0.5), DEFAULT_RATIO),
        ((0.35, 1.0), (0.5, 2.0)),
        ((0.35, 1.0), (1.5, 2.0)),
        ((0.6, 1.0), (0.4, 0.5)),
        ((0.35, 1.0), (1.0, 1.0)),
        ((0.35, 1.0), (0.5, 0.5)),
    ],
)
def test_crops_are_distributed_as_torchvision_s(scale, ratio):
    (width, height, left, top), (width_t, height_t, left_t, top_t) = (
        ours(scale, ratio).T,
        theirs(scale, ratio).T,
    )
    assert distance(width * height, width_t * height_t) < SHARP
    assert distance(np.log(width / height), np.log(width_t / height_t)) < SHARP
    assert distance(width, width_t) < SHARP
    assert distance(left, left_t) < SHARP
    assert distance(top, top_t) < SHARP
    # of the joint distribution: tall and wide crops are as large
    for tall in (0.9, 1.1):
        chosen, chosen_t = width < tall * height, width_t < tall * height_t
        if min(chosen.sum(), chosen_t.sum()) > DRAWS / 10:
            areas = (width * height)[chosen], (width_t * height_t)[chosen_t]
            assert distance(*areas) < SHARP * np.sqrt(DRAWS / min(chosen.sum(), chosen_t.sum()))


def test_a_crop_of_the_whole_area_is_the_whole_picture():
    np.testing.assert_array_equal(ours((1.0, 1.0), DEFAULT_RATIO), np.tile([1.0, 1.0, 0.0, 0.0], (DRAWS, 1)))


def test_no_crop_leaves_the_picture():
    width, height, left, top = ours((0.08, 1.0), (0.5, 2.0)).T
    assert min(left.min(), top.min()) >= -1e-6
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
