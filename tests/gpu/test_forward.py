"""What runs forward on a GPU: pictures, scores and features, on tensors of a GPU that is not there."""

import numpy as np
import pytest
import torch

from pipeline.data.augment import Augmentation
from pipeline.data.mixing import Mixing
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import PixelCache, forget_pixels
from pipeline.models.build import build_model
from pipeline.models.device import ExecutionConfig
from pipeline.models.features import FrozenNetwork
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.scoring import Scorer, _compute_logits
from pipeline.spec import IMAGENET, AugmentSpec, ModelSpec, TrainSpec
from tests.gpu.standin import NoWaiting, fake_gpu, onto

AUGMENTATIONS = {
    "nothing": {"hflip": 0.0},
    "flips": {"hflip": 0.5, "vflip": 0.5},
    "crop": {"crop": (0.3, 1)},
    "rotation": {"rotate_deg": 20},
    "both": {"crop": (0.3, 1), "rotate_deg": 20},
    "colour": {"trivial_augment": True, "brightness": 0.3, "contrast": 0.2, "saturation": 0.2},
    "mixing": {"mixup": 0.3, "cutmix": 1, "random_erasing": 0.4},
    "all": {"crop": (0.3, 1), "rotate_deg": 9, "trivial_augment": True, "mixup": 0.3, "random_erasing": 0.4},
}


@pytest.fixture
def packed(drawn):
    forget_pixels()
    yield PackedSet.open(drawn[1])
    forget_pixels()  # of fake tensors


@pytest.mark.parametrize("image_px", [24, 32, 48])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pictures_are_made_on_the_gpu_without_asking_it(monkeypatch, name, image_px):
    spec, spans = AugmentSpec(**AUGMENTATIONS[name]), [slice(0, 6), slice(6, 14)]
    with fake_gpu(monkeypatch) as to_gpu:
        images = to_gpu(np.zeros((8, 32, 32, 3), np.uint8), "cuda")
        with NoWaiting():
            inputs = Augmentation(spec, 0, 0, spans)(images, spans[1], image_px, IMAGENET)
            targets = torch.zeros(8, 5, device="cuda")
            inputs, targets = Mixing(spec, 0, 0, spans, image_px)(inputs, targets, spans[1])
    assert (inputs.device.type, inputs.dtype) == ("cuda", torch.float32)
    assert inputs.shape == (8, 3, image_px, image_px)
    assert targets.shape == (8, 5)


def test_what_would_wait_is_found(monkeypatch):
    with fake_gpu(monkeypatch) as to_gpu:
        images = to_gpu(np.zeros((8, 4), np.float32), "cuda")
        for asks in (
            lambda: bool(images.sum() > 0),
            lambda: images.sum().item(),
            lambda: images[images[:, 0] > 0],
        ):
            with pytest.raises(Exception, match=r"waits for the GPU|data-dependent|dynamic"), NoWaiting():
                asks()
        with pytest.raises(Exception, match="device"):  # a number that was not sent
            images + torch.ones(8, 4)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("flips", [False, True])
def test_scores_are_made_on_the_gpu(monkeypatch, packed, flips, resident):
    rows, execution = np.arange(20), ExecutionConfig("cuda", "fp32", 1)
    net = build_model(ModelSpec(name="resnet18"), 14, 32)
    with fake_gpu(monkeypatch) as to_gpu:
        cache = PixelCache(packed, "cuda")
        if resident:
            cache.resident = torch.empty((len(packed), 32, 32, 3), dtype=torch.uint8, device="cuda")
        monkeypatch.setattr("pipeline.models.scoring.pixel_cache", lambda *_: cache)
        scorers = [Scorer(onto(to_gpu, net), px, execution, IMAGENET, flips) for px in (32, 48)]
        with torch.inference_mode(), NoWaiting():
            found = _compute_logits(scorers, packed, rows, 8, shown=lambda done: None)
    assert [(logits.shape, logits.device.type) for logits in found] == [((20, 14), "cuda")] * 2


@pytest.mark.parametrize("augment", [None, *AUGMENTATIONS.values()], ids=["scored", *AUGMENTATIONS])
def test_features_are_made_on_the_gpu(monkeypatch, packed, augment):
    if augment and ("mixup" in augment or "random_erasing" in augment):
        augment = {"crop": (0.3, 1), "trivial_augment": True}  # features exclude mixing
    model = ModelSpec(name="resnet18", weights="net.pth", trainable="layer4")
    settings = {"augment": AugmentSpec(**augment)} if augment else {}
    train = TrainSpec(model=model, image_px=32, cached_views=1, precision="fp32", **settings)
    net = build_model(model, 14, 32)
    with fake_gpu(monkeypatch) as to_gpu:
        frozen = FrozenNetwork(onto(to_gpu, net), train, packed, ExecutionConfig("cuda", "fp32", 1))
        spans = [slice(0, 8), slice(8, 12)]
        with torch.inference_mode(), NoWaiting():
            made = list(frozen._made(np.arange(12), spans, 0 if augment else None))
    assert [(len(part), part.shape[-1], part.device.type) for part in made] == [
        (8, 256, "cuda"),
        (4, 256, "cuda"),
    ]


@pytest.mark.parametrize(
    "name", ["cnn2", "cnn3", "mobilenet_v3_small", "densenet121", "convnext_tiny", "swin_t", "vit_b_16"]
)
def test_a_network_of_every_family_is_scored_there(monkeypatch, name):
    net = build_model(ModelSpec(name=name), 14, 32).eval()
    with fake_gpu(monkeypatch) as to_gpu:
        execution = ExecutionConfig("cuda", "fp32", 1)
        scorer = Scorer(fuse_conv_bn(onto(to_gpu, net)), 32, execution, IMAGENET)
        with torch.inference_mode(), NoWaiting():
            found = scorer.logits(torch.zeros(3, 3, 32, 32, device="cuda"))
    assert (found.shape, found.device.type) == ((3, 14), "cuda")
