"""A training step by the GPU's way never waits, and sends at most its pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.data import transfer
from pipeline.data.pixel_cache import pixel_cache
from pipeline.training.feeds import build_feed
from pipeline.training.loop import _step
from tests.gpu.standin import NoWaiting, strict_cpu
from tests.gpu.test_forward import AUGMENTATIONS

EVERYTHING = {"crop": [0.3, 1], "rotate_deg": 20, "trivial_augment": True, "brightness": 0.2, "mixup": 0.4}
OPTIMIZERS = ["adam", "adamw", "sgd", "rmsprop", "adadelta"]


def steps(monkeypatch, one, count=3):
    """(sent at the first batch of an epoch, sent by each later one), by function."""
    with strict_cpu(monkeypatch) as sent:
        batches, found = build_feed(one).batches(0, 0), []
        one.training_mode()
        for _ in range(count):
            with NoWaiting():
                inputs, targets = next(batches)
                if found:  # the first step of a cell shows its pictures in TensorBoard
                    _step(one, inputs, targets, [one])
            found.append(dict(sent))
            sent.clear()
            if len(found) == 1:
                _step(one, inputs, targets, [one])
                sent.clear()
    return found


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_a_step_sends_its_pixels_or_nothing(monkeypatch, learner, augment, resident):
    one = learner(augment=augment)
    packed = one.data.packed
    if resident:
        pixel_cache(packed, "cpu").resident = torch.from_numpy(packed.gather(np.arange(len(packed))))
    first, *later = steps(monkeypatch, one)
    assert sum(first.values()) <= 16  # rows, draws, maps, boxes ... of the epoch
    assert later == [{} if resident else {"_read": 1}] * 2


class Passes(TorchDispatchMode):
    """Counts operations that write as many values as a batch of pictures has."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.numel() >= self.size and not function.is_view:
            self.found.append(function.overloadpacket.__name__)
        return made


def test_flipped_pictures_pass_through_memory_three_times(monkeypatch, learner):
    one = learner(augment={"hflip": 0.5, "vflip": 0.5})
    packed = one.data.packed
    pixel_cache(packed, "cpu").resident = torch.from_numpy(packed.gather(np.arange(len(packed))))
    with strict_cpu(monkeypatch), Passes(16 * 3 * 32 * 32) as passes:
        next(build_feed(one).batches(0, 0))
    assert passes.found == ["index", "index", "addcmul"]  # gathered, flipped, normalised


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_waits(monkeypatch, learner, name):
    one = learner(
        optimizer={"name": name}, clip_grad_norm=1.0, ema_epochs=1, augment=EVERYTHING, batch_size=8,
        model={"name": "resnet18"},
    )  # fmt: skip
    assert [sum(sent.values()) for sent in steps(monkeypatch, one)[1:]] == [1, 1]


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "bce", "pos_weight": "balanced", "label_smoothing": 0.1},
        {"name": "focal", "alpha": 0.3},
        {"name": "asymmetric", "clip": 0.05},
        {"name": "soft_f1", "average": "macro"},
        {"name": "bce_soft_f1"},
    ],
    ids=lambda loss: loss["name"],
)
def test_no_loss_waits(monkeypatch, learner, loss):
    assert [sum(sent.values()) for sent in steps(monkeypatch, learner(loss=loss))[1:]] == [1, 1]


def test_dropout_and_other_families_do_not_wait(monkeypatch, learner):
    for name in ("convnext_tiny", "mobilenet_v3_small"):
        model = {"name": name, "head_hidden": 8, "head_dropout": 0.3}
        assert [
            sum(sent.values()) for sent in steps(monkeypatch, learner(model=model, batch_size=4), 2)[1:]
        ] == [1]


def test_the_next_batch_is_asked_for_before_this_one_is_used(monkeypatch):
    """With streams that only write down what is asked of them."""
    said = []

    class Stream:
        def wait_stream(self, other):
            said.append("beside waits for what is under way")

        def record_event(self):
            return "event"

        def wait_event(self, event):
            said.append("main waits for the batch")

        __enter__ = __exit__ = lambda *_: None

    class Value(torch.Tensor):
        def record_stream(self, stream):
            said.append("kept until used")

    cuda = SimpleNamespace(current_stream=Stream, Stream=Stream, stream=lambda stream: stream, Event=object)
    monkeypatch.setattr(transfer, "torch", SimpleNamespace(cuda=cuda, Tensor=torch.Tensor))

    def made():
        for i in range(3):
            said.append(f"make {i}")
            yield (torch.zeros(1).as_subclass(Value),)

    for i, _ in enumerate(transfer.one_ahead(made, "cuda")):
        said.append(f"use {i}")
    assert said == [
        "beside waits for what is under way", "make 0", "make 1",
        "main waits for the batch", "kept until used", "use 0", "make 2",
        "main waits for the batch", "kept until used", "use 1",
        "main waits for the batch", "kept until used", "use 2",
    ]  # fmt: skip
