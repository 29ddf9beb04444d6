"""Batches are a function of (seed, epoch, position); augmentation too."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pipeline.data.augment import Augmentation
from pipeline.data.inputs import to_input
from pipeline.data.loading import Stream, spans_in_order
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import PixelCache
from pipeline.spec import IMAGENET, AugmentSpec


@pytest.fixture(scope="module")
def packed(drawn):
    return PackedSet.open(drawn[1])


def epoch_rows(stream, epoch, first_step=0):
    return [stream.order(epoch)[span].tolist() for span in stream.spans[first_step:]]


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(packed):
    rows = np.arange(10, 47)
    stream = Stream(packed, rows, batch_size=8, seed=1)
    batches = epoch_rows(stream, 0)
    assert sorted(row for batch in batches for row in batch) == rows.tolist()
    assert stream.steps_per_epoch == len(batches) == 5
    assert epoch_rows(stream, 0) == batches
    assert epoch_rows(stream, 1) != batches
    assert epoch_rows(Stream(packed, rows, batch_size=8, seed=2), 0) != batches


def test_an_epoch_begun_in_the_middle_gives_the_same_rest(packed):
    stream = Stream(packed, np.arange(50), batch_size=8, seed=0)
    assert epoch_rows(stream, 3, first_step=4) == epoch_rows(stream, 3)[4:]
    assert [span.start for span in stream.spans[4:]] == [32, 40, 48]


def test_a_last_batch_of_one_joins_the_one_before(packed):
    stream = Stream(packed, np.arange(17), batch_size=8, seed=0)
    assert [len(rows) for rows in epoch_rows(stream, 0)] == [8, 9]
    assert stream.steps_per_epoch == 2


def test_pixels_and_targets_belong_to_their_rows(packed):
    stream = Stream(packed, np.arange(20), batch_size=6, seed=0)
    order = stream.order(0)
    batches = list(PixelCache(packed, "cpu").batches(order, stream.spans))
    assert [batch.span for batch in batches] == stream.spans
    for batch in batches:
        np.testing.assert_array_equal(batch.images_BHWC, packed.gather(order[batch.span]))
        np.testing.assert_array_equal(batch.targets_BK, packed.labels_NK[order[batch.span]])
    assert spans_in_order(3, 2) == [slice(0, 2), slice(2, 3)]


def test_no_rows_are_no_batches(packed):
    assert list(PixelCache(packed, "cpu").batches(np.array([], np.int64), spans_in_order(0, 4))) == []


def pictures(count=6, size=32):
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.integers(0, 255, (count, 3, 6, 6), np.uint8))
    return reference.resize(small, [size, size]).permute(0, 2, 3, 1).contiguous()


def unnormalised(inputs_BCHW):
    return (
        inputs_BCHW * torch.tensor(IMAGENET.std).view(1, 3, 1, 1) * 255
        + torch.tensor(IMAGENET.mean).view(1, 3, 1, 1) * 255
    )


def augment(images_BHWC, seed=0, epoch=0, image_px=32, span=None, **settings):
    spec = AugmentSpec.model_validate({"hflip": 0.0, **settings})
    span = slice(0, len(images_BHWC)) if span is None else span
    return Augmentation(spec, seed, epoch, [slice(0, 50)])(images_BHWC, span, image_px, IMAGENET)


def test_scoring_s_input_is_the_normalised_picture():
    images = pictures()
    expected = reference.normalize(images.permute(0, 3, 1, 2).float() / 255, *IMAGENET)
    torch.testing.assert_close(to_input(images, 32, IMAGENET), expected, atol=1e-5, rtol=1e-5)
    smaller = reference.resize(images.permute(0, 3, 1, 2).float(), [16, 16], antialias=True)
    torch.testing.assert_close(unnormalised(to_input(images, 16, IMAGENET)), smaller, atol=1e-2, rtol=1e-4)


def test_without_any_change_augmentation_is_scoring_s_input():
    torch.testing.assert_close(augment(pictures()), to_input(pictures(), 32, IMAGENET))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"hflip": 1.0}, reference.horizontal_flip), ({"vflip": 1.0}, reference.vertical_flip)],
)
@pytest.mark.parametrize("extra", [{}, {"rotate_deg": 1e-6}], ids=["moved", "sampled"])
def test_flips_are_torchvision_s(settings, expected, extra):
    flipped = unnormalised(augment(pictures(), **settings, **extra))
    torch.testing.assert_close(flipped, expected(pictures().permute(0, 3, 1, 2)).float(), atol=0.1, rtol=1e-3)


def test_a_rotation_is_torchvision_s_for_the_same_angle():
    images = pictures(4, 64)
    augmentation = Augmentation(AugmentSpec(hflip=0.0, rotate_deg=25.0), 0, 0, [slice(0, 4)])
    rotated = unnormalised(augmentation(images, slice(0, 4), 64, IMAGENET))
    for i in range(4):
        angle = float((2 * augmentation.draws_N7[i, 2] - 1) * 25)
        expected = reference.rotate(
            images[i].permute(2, 0, 1).float(), -angle, interpolation=reference.InterpolationMode.BILINEAR
        )
        other = reference.rotate(
            images[i].permute(2, 0, 1).float(), angle, interpolation=reference.InterpolationMode.BILINEAR
        )
        error = min((rotated[i] - e)[:, 16:48, 16:48].abs().mean() for e in (expected, other))
        assert error < 1.5


def test_a_crop_shows_a_part_of_the_asked_area_within_the_picture():
    spec = AugmentSpec(hflip=0.0, crop=(0.35, 0.5))
    augmentation = Augmentation(spec, 0, 0, [slice(0, 500)])
    theta = augmentation.theta(augmentation.draws_N7)
    width, height = theta[:, 0, 0], theta[:, 1, 1]
    area = width * height
    assert 0.34 < area.min() < area.max() < 0.51
    assert (abs(theta[:, 0, 2]) <= 1 - width + 1e-6).all()
    assert (abs(theta[:, 1, 2]) <= 1 - height + 1e-6).all()
    assert 0.74 < (width / height).min() < 0.8
    # the corner pixel of an uncropped gradient never shows when only its middle is looked at
    ramp = torch.arange(32).view(1, 1, 32, 1).expand(1, 32, 32, 3).to(torch.uint8).contiguous()
    shown = unnormalised(augment(ramp, crop=(0.35, 0.5)))
    assert (shown[0, 0, :, -1] - shown[0, 0, :, 0]).max() < 31


def test_a_draw_belongs_to_seed_epoch_and_position_alone():
    images, settings = pictures(), {"hflip": 0.5, "crop": (0.4, 1.0), "rotate_deg": 20.0}
    whole = augment(images, **settings)
    alone = augment(images[3:4], span=slice(3, 4), **settings)
    torch.testing.assert_close(alone, whole[3:4], rtol=0, atol=0)
    assert not torch.equal(augment(images, epoch=1, **settings), whole)
    assert not torch.equal(augment(images, seed=1, **settings), whole)


def test_training_crop_and_packed_size_are_independent():
    assert augment(pictures(2, 32), image_px=56, crop=(0.5, 1.0)).shape == (2, 3, 56, 56)
    assert augment(pictures(2, 64), image_px=24, crop=(0.5, 1.0)).shape == (2, 3, 24, 24)
    assert augment(pictures(2, 64), image_px=24).shape == (2, 3, 24, 24)


@pytest.mark.parametrize("settings", [{"crop": (0.3, 1.0)}, {"crop": (0.3, 1.0), "rotate_deg": 25.0}])
@pytest.mark.parametrize("image_px", [20, 56])
def test_threads_change_no_bit_of_a_picture(settings, image_px):
    def made(threads):
        torch.set_num_threads(threads)
        return augment(pictures(33), image_px=image_px, **settings), to_input(
            pictures(33), image_px, IMAGENET
        )

    before = torch.get_num_threads()
    try:
        one, four = made(1), made(4)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = torch.zeros((1, 64, 64, 3), dtype=torch.uint8)
    stripes[:, :, ::4] = 255  # every fourth column: skipped or hit by plain sampling, a quarter by area
    shown = unnormalised(augment(stripes, image_px=16, rotate_deg=1e-6))
    assert (shown - 63.75)[..., 1:-1].abs().max() < 0.1  # the column at the edge is one of them
