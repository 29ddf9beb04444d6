"""The learning rate and weight decay of each parameter: by layers, by patterns, in the order of execution."""

import re

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torchvision.models import get_model

from pipeline.errors import TrainingError
from pipeline.models.build import build_model, head_of
from pipeline.models.layers import layers_of
from pipeline.models.own_networks import OWN_NETWORKS
from pipeline.spec import ModelSpec, OptimizerSpec
from pipeline.spec.model_names import HEAD_OF
from pipeline.training.optim import build_optimizer
from tests.models.test_build import SMALLEST

# one of each family, and those of it that are built in another way -> layers: stem, blocks, what joins stages, head
LAYERS = {
    "cnn2": 3, "cnn3": 4, "resnet18": 1 + 8 + 1, "resnext50_32x4d": 1 + 16 + 1, "regnet_y_400mf": 1 + 16 + 1,
    "mobilenet_v2": 1 + 17 + 2, "mobilenet_v3_small": 1 + 11 + 3, "efficientnet_b0": 1 + 16 + 2,
    "efficientnet_v2_s": 1 + 40 + 2, "convnext_tiny": 1 + 18 + 3 + 1, "densenet121": 1 + 58 + 3 + 1,
    "vit_b_32": 1 + 12 + 1, "swin_t": 1 + 12 + 3 + 1, "swin_v2_t": 1 + 12 + 3 + 1,
}  # fmt: skip


def optimizer(net, head=None, **settings):
    spec = TypeAdapter(OptimizerSpec).validate_python({"name": "sgd", "lr": 1.0, **settings})
    return build_optimizer(spec, net, head)


def settings_of(net, **settings):
    """Parameter's name -> (rate, weight decay); every trainable one is in one group."""
    groups = optimizer(net, net.fc, **settings).param_groups
    found = [(id(p), (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    names = {id(p): name for name, p in net.named_parameters()}
    assert len(found) == len(dict(found)) == sum(p.requires_grad for p in net.parameters())
    return {names[key]: values for key, values in found}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)


def small():
    """Named as a resnet: a stem, two blocks, a head."""
    net = nn.Module()
    net.conv1, net.bn1, net.layer1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(Block(), Block())
    net.fc = nn.Linear(4, 2)
    return net


# ---------------------------------------------------------------- by layers


def test_every_family_has_a_network_here():
    assert set(SMALLEST.values()) < LAYERS.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_blocks_in_the_order_of_execution_from_the_stem_to_the_head(name):
    side = 224 if name.startswith("vit") else 32
    with torch.device(
        "cpu" if name.startswith("regnet") else "meta"
    ):  # a regnet cannot be made without memory
        net = get_model(name) if name in HEAD_OF else OWN_NETWORKS[name](5, side)
    net.to("meta").eval()
    head = head_of(net, name)
    layers = layers_of(net, head)
    assert set(layers.values()) == set(range(LAYERS[name]))
    assert layers.keys() == {key for key, _ in net.named_parameters()}
    executed = []
    for key, module in net.named_modules():
        own = [f"{key}.{p}" for p, _ in module.named_parameters(recurse=False) if key]
        module.register_forward_pre_hook(lambda *_, own=own: executed.extend(layers[p] for p in own))
    net(torch.zeros(2, 3, side, side, device="meta"))
    assert executed == sorted(executed)
    rates = optimizer(net, head, layer_decay=0.5).param_groups
    members = {id(p): group["lr"] for group in rates for p in group["params"]}
    assert sum(len(group["params"]) for group in rates) == len(members) == len(layers)
    assert {members[id(p)] for p in head.parameters()} == {1.0}
    assert [members[id(p)] for p in net.parameters()] == [
        0.5 ** (LAYERS[name] - 1 - layers[key]) for key, _ in net.named_parameters()
    ]
    assert rates[0]["lr"] == 1.0


def test_a_vit_has_the_layers_of_beit():
    """`get_num_layer_for_vit` of microsoft/unilm: tokens and patches 0, block i is i + 1, the rest as the head."""
    with torch.device("meta"):
        net = get_model("vit_b_32")
    layers = layers_of(net, net.heads[-1])
    first = ("class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding")
    assert {layers[name] for name in first} == {0}
    for name, layer in layers.items():
        if block := re.match(r"encoder\.layers\.encoder_layer_(\d+)\.", name):
            assert layer == int(block[1]) + 1, name
    assert {layers[name] for name in ("encoder.ln.weight", "encoder.ln.bias", "heads.head.weight")} == {13}


@pytest.mark.parametrize("model", [{"head_hidden": 6, "head_dropout": 0.1}, {}], ids=["hidden", "linear"])
def test_all_layers_of_a_head_learn_at_the_full_rate(model):
    net = build_model(ModelSpec(name="cnn2", **model), 3, 16)
    rates = optimizer(net, net[-1], layer_decay=0.5).param_groups
    assert {id(p): group["lr"] for group in rates for p in group["params"]} == {
        id(p): {0: 0.25, 1: 0.25, 4: 0.5, 5: 0.5}.get(int(name.split(".")[0]), 1.0)
        for name, p in net.named_parameters()
    }


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "convnext_atto", "swinv2_cr_tiny_224"])
def test_networks_of_timm_are_grouped_as_timm_groups_them(name):
    import timm
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        net = timm.create_model(name, num_classes=3)
    listed = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(net, 0.05, listed, layer_decay=0.75)
    ours = optimizer(net, net.get_classifier(), layer_decay=0.75, weight_decay=0.05).param_groups
    expected = {id(p): (g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    found = {id(p): (g["lr"], g["weight_decay"]) for g in ours for p in g["params"]}
    assert found == expected
    assert len({rate for rate, _ in found.values()}) > 3


HEADS = {"linear": {}, "hidden": {"head_hidden": 6, "head_dropout": 0.1}, "csra": {"head": {"name": "csra"}}}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["convnext_atto", "test_vit", "test_efficientnet"])
def test_rates_of_timm_rise_from_the_stem_to_the_head_whatever_the_head_is(name, head):
    model = ModelSpec(name=f"timm/{name}", **HEADS[head])
    net = build_model(model, 3, 64).eval()
    own = head_of(net, model.name)
    groups = optimizer(net, own, layer_decay=0.5).param_groups
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate_of.keys() == {id(p) for p in net.parameters()}
    assert {rate_of[id(p)] for p in own.parameters()} == {1.0}
    executed = []
    for module in net.modules():
        rates = [rate_of[id(p)] for p in module.parameters(recurse=False)]
        if module is not net:  # tokens and positions of a vit, which are of the stem
            module.register_forward_pre_hook(lambda *_, rates=rates: executed.extend(rates))
    with torch.inference_mode():
        net(torch.zeros(1, 3, 64, 64))
    assert executed == sorted(executed)
    # each layer at half the rate of the next one, and none left out
    assert sorted(set(rate_of.values())) == [0.5**n for n in reversed(range(len(set(rate_of.values()))))]
    stem = {rate_of[id(p)] for p in net.parameters(recurse=False)} | {executed[0]}
    assert stem == {min(rate_of.values())}
    assert len(set(rate_of.values())) > 5


# ---------------------------------------------------------------- by patterns


def test_the_last_pattern_that_matches_and_says_something_wins():
    groups = (
        {"parameters": "*", "lr_factor": 0.5, "weight_decay": 0.3},
        {"parameters": "layer1.*", "lr_factor": 3.0},
        {"parameters": "*.bn.weight", "weight_decay": 0.0},
        {"parameters": "layer1.1.conv.*", "lr_factor": 4.0, "weight_decay": 0.2},
    )
    found = settings_of(small(), weight_decay=0.1, groups=groups)
    assert (
        found["conv1.weight"] == found["conv1.bias"] == found["fc.weight"] == (0.5, 0.3)
    )  # norms and biases too
    assert found["layer1.0.conv.weight"] == found["layer1.0.bn.bias"] == (3.0, 0.3)
    assert found["layer1.0.bn.weight"] == found["layer1.1.bn.weight"] == (3.0, 0.0)
    assert found["layer1.1.conv.weight"] == found["layer1.1.conv.bias"] == (4.0, 0.2)


def test_factors_of_backbone_layers_and_patterns_multiply_and_decay_stays_as_it_was():
    found = settings_of(
        small(), weight_decay=0.1, backbone_lr_factor=0.1, layer_decay=0.5,
        groups=({"parameters": "layer1.1.*", "lr_factor": 3.0}, {"parameters": "fc.bias", "lr_factor": 2.0}),
    )  # fmt: skip
    assert found["fc.weight"] == (1.0, 0.1)
    assert found["fc.bias"] == (2.0, 0.0)
    assert found["layer1.1.conv.weight"] == pytest.approx((3.0 * 0.1 * 0.5, 0.1))
    assert found["layer1.0.conv.weight"] == pytest.approx((0.1 * 0.25, 0.1))
    assert found["bn1.weight"] == pytest.approx((0.1 * 0.125, 0.0))
    everything = settings_of(small(), weight_decay=0.1, layer_decay=0.5, decay_bias_and_norm=True)
    assert {decay for _, decay in everything.values()} == {0.1}


def test_the_first_group_is_of_the_head_whatever_learns_faster():
    """Its rate is `train/lr`."""
    net = small()
    first = optimizer(net, net.fc, groups=({"parameters": "layer1.*", "lr_factor": 9.0},)).param_groups[0]
    assert first["lr"] == 1.0
    assert any(p is net.fc.weight for p in first["params"])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_state_that_was_saved_before_there_were_groups_still_fits(weight_decay):
    """The order of groups, and of parameters in them, without the new keys: decayed before spared, the head first."""
    net = small()
    names = [
        [next(name for name, p in net.named_parameters() if p is each) for each in group["params"]]
        for group in optimizer(net, net.fc, weight_decay=weight_decay).param_groups
    ]
    matrices = ["conv1.weight", "layer1.0.conv.weight", "layer1.1.conv.weight", "fc.weight"]
    assert names == [matrices, [name for name, p in net.named_parameters() if p.ndim == 1]]
    groups = optimizer(net, net.fc, weight_decay=weight_decay, backbone_lr_factor=3.0).param_groups
    assert [[len(group["params"]), group["lr"]] for group in groups] == [
        [1, 1.0],
        [1, 1.0],
        [3, 3.0],
        [9, 3.0],
    ]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("layr1.*", "'layr1.*' matches no parameter; did you mean layer1"),
        ("*.conb.*", "did you mean conv"),
        ("zzz", "they begin with conv1, bn1, layer1, fc"),
        (
            "conv1.*",
            "'conv1.*' matches frozen parameters alone; remove it, or train them (train.model.trainable)",
        ),
    ],
)
def test_a_pattern_without_parameters_is_refused_with_near_names(pattern, said):
    net = small()
    net.conv1.requires_grad_(False)
    with pytest.raises(TrainingError, match="train.optimizer.groups: .*" + re.escape(said)):
        optimizer(net, net.fc, groups=({"parameters": pattern, "lr_factor": 2.0},))
