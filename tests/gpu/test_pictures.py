"""What a network is given by the GPU's way is what the CPU's way gives it, in the real paths and in half precision."""

import numpy as np
import pytest
import torch

from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import forget_pixels
from pipeline.models import features
from pipeline.models.build import build_model
from pipeline.models.device import ExecutionConfig
from pipeline.models.features import FrozenNetwork
from pipeline.models.scoring import Scorer, _compute_logits
from pipeline.spec import IMAGENET, ModelSpec, TrainSpec
from pipeline.training.loop import train
from pipeline.training.stop_signal import StopFlag
from tests.gpu.standin import strict_cpu

CLOSE = 0.02  # of 255
# the size of the packed pictures is 32: cropped and turned, smaller, as large, larger
SIZES = pytest.mark.parametrize("image_px", [24, 32, 48])
DRAWS = pytest.mark.parametrize(
    "augment",
    [
        {"hflip": 0.5, "vflip": 0.5},
        {"crop": (0.3, 1)},
        {"crop": (0.3, 1), "rotate_deg": 25},
        {"crop": (0.3, 1), "trivial_augment": True, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
    ],
    ids=["flips", "crop", "both", "colour"],
)


def seen(net):
    """What the network is given from now on, as pixels in [0, 255]."""
    found = []
    std, mean = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.std, IMAGENET.mean))

    def look(module, inputs):
        assert inputs[0].dtype == torch.float32  # it is the network that rounds
        found.append((inputs[0].detach() * std + mean) * 255)

    net.register_forward_pre_hook(look)
    return found


def assert_close(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert (a - b).abs().max() < CLOSE


@SIZES
@DRAWS
def test_in_features(drawn, tmp_path, monkeypatch, augment, image_px):
    packed, model = PackedSet.open(drawn[1]), ModelSpec(name="cnn2", weights="net.pth", trainable="head")
    spec = TrainSpec(model=model, image_px=image_px, cached_views=1, precision="bf16", augment=augment)
    net, execution = build_model(model, 14, image_px), ExecutionConfig("cpu", "bf16", 1)
    monkeypatch.setattr(features, "fuse_conv_bn", lambda net: net.eval())

    def given(folder, view):
        frozen = FrozenNetwork(net, spec, packed, execution, folder=tmp_path / folder)
        found = seen(frozen._net)
        frozen._cached(np.arange(20), view)
        return found

    for view in (None, 0):
        by_threads = given("threads", view)
        with monkeypatch.context() as patch, strict_cpu(patch):
            by_torch = given("torch", view)
        assert_close(by_torch, by_threads)


@SIZES
@DRAWS
def test_in_training_and_validation(learner, monkeypatch, augment, image_px):
    def given():
        one = learner(augment=augment, image_px=image_px, precision="bf16", epochs=1)
        for path in one.run.path.glob("*.pt"):
            path.unlink()
        one = learner(augment=augment, image_px=image_px, precision="bf16", epochs=1)
        found = seen(one.net)
        train([one], StopFlag())
        assert one.attempt.is_done
        return found

    by_threads = given()
    forget_pixels()
    with monkeypatch.context() as patch, strict_cpu(patch):
        by_torch = given()
    assert_close(by_torch, by_threads)


def test_in_scoring(drawn, monkeypatch):
    packed, net = PackedSet.open(drawn[1]), build_model(ModelSpec(name="cnn2"), 14, 48)
    monkeypatch.setattr("pipeline.models.scoring.fuse_conv_bn", lambda net: net.eval())
    found, execution = seen(net), ExecutionConfig("cpu", "bf16", 1)
    for size in (24, 32, 48):
        del net[-1]
        net.append(torch.nn.Linear(32 * (size // 2) ** 2, 14))
        _compute_logits(
            [Scorer(net, size, execution, IMAGENET)], packed, np.arange(10), 4, shown=lambda done: None
        )
        by_threads = found[:]
        found.clear()
        with monkeypatch.context() as patch, strict_cpu(patch):
            _compute_logits(
                [Scorer(net, size, execution, IMAGENET)], packed, np.arange(10), 4, shown=lambda done: None
            )
        assert_close(found, by_threads)
        found.clear()
