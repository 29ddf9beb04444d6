"""Sampling, colour, mixing, averaged weights: against torchvision, closed forms, and their promises."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tv

from pipeline.data.colour import OPERATIONS, Colour
from pipeline.data.mixing import Mixing
from pipeline.data.sampling import epoch_rows, expected_repeats, label_shares
from pipeline.models.build import build_model, head_of, init_bias_to_prior, set_training_mode
from pipeline.spec import AugmentSpec, ModelSpec, SamplingSpec
from pipeline.training.ema import WeightAverage


def pictures(count=6, px=20, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, px, px, 3), np.uint8))


# ---------------------------------------------------------------- sampling

TARGETS = np.zeros((1000, 2), np.uint8)
TARGETS[:300, 0] = 1  # common
TARGETS[290:310, 1] = 1  # rare; 690 blank


def test_repeat_factors_are_the_paper_s():
    repeats = expected_repeats(SamplingSpec(name="repeat_factor", threshold=0.1), TARGETS)
    rare = TARGETS[:, 1] > 0
    assert repeats[rare] == pytest.approx(np.sqrt(0.1 / 0.02))
    assert (repeats[~rare] == 1).all()


def test_inverse_frequency_shows_each_kind_as_often():
    repeats = expected_repeats(SamplingSpec(name="inverse_frequency"), TARGETS)
    kinds = [TARGETS[:, 1] > 0, (TARGETS[:, 0] > 0) & (TARGETS[:, 1] == 0), ~TARGETS.any(axis=1)]
    totals = [repeats[kind].sum() for kind in kinds]
    assert sum(totals) == pytest.approx(1000)
    assert totals[0] == pytest.approx(totals[2])
    assert repeats[kinds[0]].min() > repeats[kinds[1]].max() > repeats[kinds[2]].max()


@pytest.mark.parametrize(
    "spec", [SamplingSpec(negatives=0.3), SamplingSpec(name="repeat_factor", threshold=0.5, negatives=0.0)]
)
def test_every_epoch_has_as_many_rows_and_each_comes_as_often_as_promised(spec):
    rows, repeats = np.arange(5000, 6000), expected_repeats(spec, TARGETS)
    epochs = [epoch_rows(rows, repeats, 0, epoch) for epoch in range(200)]
    assert {len(epoch) for epoch in epochs} == {round(repeats.sum())}
    times = np.stack([np.bincount(epoch - 5000, minlength=1000) for epoch in epochs])
    assert (np.abs(times - repeats) < 1.01).all()  # rounded down or up
    np.testing.assert_allclose(times.mean(axis=0), repeats, atol=0.15)
    np.testing.assert_array_equal(epochs[3], epoch_rows(rows, repeats, 0, 3))
    if 0 < spec.negatives < 1:
        assert not np.array_equal(np.sort(epochs[0]), np.sort(epochs[1]))


@pytest.mark.parametrize("name", ["repeat_factor", "inverse_frequency"])
def test_many_images_and_labels_take_parts_of_the_memory_and_give_the_same(name, monkeypatch):
    monkeypatch.setattr("pipeline.data.sampling._VALUES", 1 << 16)
    rng = np.random.default_rng(0)
    targets_NK = (rng.random((20_000, 200), np.float32) < 0.01).astype(np.uint8)  # 4 MB, 32 MB in float64
    spec = SamplingSpec(name=name, threshold=0.5)
    tracemalloc.start()
    try:
        repeats_N = expected_repeats(spec, targets_NK)
        share_K = label_shares(targets_NK, repeats_N)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < targets_NK.nbytes
    rarest_N = np.where(targets_NK > 0, targets_NK.mean(axis=0), 1.0).min(axis=1)
    if name == "repeat_factor":
        np.testing.assert_array_equal(repeats_N, np.maximum(1, np.sqrt(0.5 / rarest_N)) * targets_NK.any(1)
                                      + ~targets_NK.any(1))  # fmt: skip
    np.testing.assert_array_equal(share_K, np.average(targets_NK, axis=0, weights=repeats_N))
    np.testing.assert_array_equal(label_shares(targets_NK, None), np.average(targets_NK, axis=0))


# ---------------------------------------------------------------- colour

REFERENCES = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "sharpness": tv.adjust_sharpness,
    "posterize": lambda images, strength: tv.posterize(images, 8 - round(strength * 6)),
    "solarize": lambda images, strength: tv.solarize(images, 255 * (1 - strength)),
    "autocontrast": lambda images, _: tv.autocontrast(images),
    "equalize": lambda images, _: tv.equalize(images),
}


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.7])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_colour_is_torchvision_s(name, strength):
    if strength > 1 and name in ("posterize", "solarize"):
        pytest.skip("their strength is a share")
    images = pictures().permute(0, 3, 1, 2)
    images[0] = 7  # a picture of one colour
    images[1] = images[1] // 3 + 50
    expected = REFERENCES[name](images, strength)
    found = OPERATIONS[name](images.float(), torch.full((6, 1, 1, 1), strength)).round()
    assert (found - expected.float()).abs().max() <= 2  # theirs are cut to whole numbers in between


def test_colour_is_a_function_of_epoch_and_position_and_off_by_default():
    spec, images = AugmentSpec(trivial_augment=True, brightness=0.4, saturation=0.4), pictures()
    whole = Colour(spec, 0, 1, [slice(0, 3), slice(3, 9)])(images, slice(3, 9))
    part = Colour(spec, 0, 1, [slice(0, 5), slice(5, 9)])(images[2:], slice(5, 9))
    assert torch.equal(whole[2:], part)
    assert not torch.equal(whole, Colour(spec, 0, 2, [slice(0, 3), slice(3, 9)])(images, slice(3, 9)))
    assert Colour(AugmentSpec(), 0, 1, [slice(0, 9)])(images, slice(3, 9)) is images


# ---------------------------------------------------------------- mixing

INPUTS, MIXED_TARGETS = torch.randn(8, 3, 16, 16), (torch.rand(8, 5) < 0.4).float()


def mix(spec, inputs, targets):
    whole = slice(0, len(inputs))
    return Mixing(spec, 0, 0, [whole], inputs.shape[-1])(inputs, targets, whole)


def test_a_mixup_is_the_same_share_of_picture_and_labels():
    mixed, targets = mix(AugmentSpec(mixup=0.5), INPUTS, MIXED_TARGETS)
    for i in range(8):
        fits = []
        for j in set(range(8)) - {i}:
            share = ((mixed[i] - INPUTS[j]) * (INPUTS[i] - INPUTS[j])).sum() / (
                INPUTS[i] - INPUTS[j]
            ).square().sum()
            fits.append(
                (torch.allclose(mixed[i], share * INPUTS[i] + (1 - share) * INPUTS[j], atol=1e-4), j, share)
            )
        ((_, j, share),) = [fit for fit in fits if fit[0]] if sum(f[0] for f in fits) == 1 else [(0, i, 1.0)]
        torch.testing.assert_close(
            targets[i], share * MIXED_TARGETS[i] + (1 - share) * MIXED_TARGETS[j], atol=1e-3, rtol=0
        )


def test_a_cutmix_counts_labels_by_the_pixels_that_are_pasted():
    pictures = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 16, 16)
    targets = torch.eye(8)
    mixed, labels = mix(AugmentSpec(cutmix=1.0), pictures, targets)
    for i in range(8):
        counted = torch.bincount(mixed[i, 0].flatten().long(), minlength=8) / 256
        torch.testing.assert_close(labels[i], counted, atol=1e-6, rtol=0)
    assert (labels.max(dim=1).values < 1).sum() > 4


def test_erasing_blanks_a_rectangle_of_the_promised_size():
    spec = AugmentSpec(random_erasing=0.5, random_erasing_area=(0.1, 0.3))
    ones = torch.ones(400, 3, 16, 16)
    erased, targets = mix(spec, ones, torch.ones(400, 1))
    share = (erased[:, 0] == 0).float().mean(dim=(1, 2))
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert share[share > 0].min() > 0.07
    assert share.max() < 0.34
    assert (targets == 1).all()


# ---------------------------------------------------------------- averaged weights, phases, prior


def test_the_average_of_weights_is_the_recursion_and_forgets_the_beginning():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(net, horizon_steps=20)
    expected = net[0].weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            net[0].weight += 0.1
        average.update(net, step)
        decay = min(1 - 1 / 20, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    torch.testing.assert_close(average.net[0].weight, expected)
    lag = (net[0].weight - average.net[0].weight).mean().item() / 0.1
    assert lag == pytest.approx(19, abs=0.5)  # of a line: horizon - 1 steps


def test_head_first_freezes_all_but_the_head_and_thaws_it():
    net = build_model(ModelSpec(name="mobilenet_v2"), 3, 32)
    set_training_mode(net, head_of(net, "mobilenet_v2"))
    assert {id(p) for p in net.parameters() if p.requires_grad} == {
        id(p) for p in head_of(net, "mobilenet_v2").parameters()
    }
    set_training_mode(net, net)
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in net.modules())


def test_a_head_at_the_prior_scores_each_label_s_share():
    net = build_model(ModelSpec(name="cnn3"), 3, 16)
    init_bias_to_prior(net, "cnn3", np.array([0.5, 0.1, 0.0]))
    bias = head_of(net, "cnn3").bias
    assert torch.sigmoid(bias).tolist() == pytest.approx([0.5, 0.1, 1e-4], rel=1e-3)
