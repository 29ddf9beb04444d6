"""Marks at the fields: which settings of a cell change the batches it is trained on."""

import pytest

from jobs.planning.tasks import stream_key
from pipeline.spec import TrainSpec

# a value other than the default -> whether cells that differ in it are trained on the same batches
TRAIN = {
    "model": ({"name": "cnn2"}, True),
    "image_px": (64, False),
    "augment": ({"hflip": 0.1}, False),
    "loss": ({"name": "soft_f1"}, True),
    "optimizer": ({"name": "sgd"}, True),
    "schedule": ({"name": "cosine"}, True),
    "epochs": (3, True),
    "batch_size": (8, False),
    "cached_views": (2, False),
    "precision": ("fp32", True),
    "monitor": ("loss", True),
    "sampling": ({"negatives": 0.5}, False),
    "ema_epochs": (1.0, True),
    "clip_grad_norm": (1.0, True),
    "freeze_backbone_epochs": (1, True),
    "patience_epochs": (2, True),
    "tta_hflip": (True, True),
    "eval_image_px": (160, False),
    "seed": (1, False),
}
MODEL = {
    "name": ("resnet34", False),
    "options": ({"depth": 3}, False),
    "weights": ("IMAGENET1K_V2", False),
    "trainable": ("last_stage", False),
    "head": ({"name": "csra"}, False),
    "head_bias": ("prior", True),
    "head_hidden": (8, True),
    "head_dropout": (0.5, True),
}
PLAIN = {"model": {"name": "resnet18", "weights": "IMAGENET1K_V1", "trainable": "head"}}
CACHED = PLAIN | {"cached_views": 4}


def key(settings, data="d"):
    return stream_key(TrainSpec.model_validate(settings), data)


def test_every_field_is_decided_here():
    assert list(TRAIN) == list(TrainSpec.model_fields)
    assert list(MODEL) == list(TrainSpec.model_fields["model"].annotation.model_fields)


@pytest.mark.parametrize("name", TRAIN)
def test_fields_part_the_batches_of_pictures_or_do_not(name):
    value, same = TRAIN[name]
    assert (key(PLAIN | {name: value}) == key(PLAIN)) is same


@pytest.mark.parametrize("name", sorted(TRAIN.keys() - {"model", "cached_views"}))
def test_of_cached_features_the_precision_matters_too(name):
    value, same = TRAIN[name]
    assert (key(CACHED | {name: value}) == key(CACHED)) is (same and name != "precision")


@pytest.mark.parametrize("name", MODEL)
def test_of_cached_features_the_network_matters_and_of_its_head_only_what_it_takes(name):
    value, same = MODEL[name]
    own = {"name": "mylab.nets:build", "weights": "w.pth"} if name == "options" else {}
    model = CACHED["model"] | own
    assert (key(CACHED | {"model": model | {name: value}}) == key(CACHED | {"model": model})) is same


def test_heads_of_one_kind_share_cached_features():
    csra = [{"name": "csra"}, {"name": "csra", "heads": 4}, {"name": "csra", "attention_weight": 0.5}]
    assert len({key(CACHED | {"model": CACHED["model"] | {"head": head}}) for head in csra}) == 1


def test_other_data_are_other_batches():
    assert key(PLAIN) != key(PLAIN, data="e")
