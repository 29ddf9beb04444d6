"""Networks by name: shapes, heads, weights of the right and of the wrong kind."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import CheckpointError, TrainingError
from pipeline.models.build import (
    build_model,
    frozen_part,
    head_of,
    init_bias_to_prior,
    set_training_mode,
    trainable_part,
)
from pipeline.models.cutting import cut_at
from pipeline.models.fusing import fuse_conv_bn
from pipeline.spec import ModelSpec
from pipeline.spec.model_names import CNNS, FAMILIES, HEAD_OF, LAST_STAGE_OF, MODEL_NAMES
from tests.conftest import ROOT

SMALLEST = {
    "resnet": "resnet18", "resnext": "resnext50_32x4d", "regnet": "regnet_y_400mf", "mobilenet": "mobilenet_v3_small",
    "efficientnet": "efficientnet_b0", "convnext": "convnext_tiny", "densenet": "densenet121", "vit": "vit_b_32",
    "swin": "swin_t",
}  # fmt: skip


def test_the_convolutions_are_the_original_work_s():
    cnn3 = build_model(ModelSpec(name="cnn3"), 14, 128)
    kinds = [type(layer).__name__ for layer in cnn3]
    assert kinds == [
        *("Conv2d", "ReLU", "MaxPool2d", "Conv2d", "BatchNorm2d", "ReLU"),
        *("Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"),
    ]
    convolutions = [layer for layer in cnn3 if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.padding) for c in convolutions] == [
        *((3, 12, (3, 3), (1, 1)), (12, 20, (3, 3), (1, 1)), (20, 32, (3, 3), (1, 1))),
    ]
    cnn2 = build_model(ModelSpec(name="cnn2"), 14, 128)
    assert [type(layer).__name__ for layer in cnn2] == [
        *("Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"),
    ]


@pytest.mark.parametrize("image_px", [8, 31, 128, 200])
@pytest.mark.parametrize("name", ["cnn2", "cnn3"])
def test_the_cnns_work_at_any_size(name, image_px):
    net = build_model(ModelSpec(name=name), 5, image_px)
    assert net(torch.zeros(2, 3, image_px, image_px)).shape == (2, 5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_every_family_gets_a_head_of_k_labels_and_trains(family):
    image_px = 64
    model = ModelSpec(name=SMALLEST[family], weights="w.pth", trainable="head")
    net = build_model(model, 7, image_px)
    head = head_of(net, model.name)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 7
    trainable = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in head.parameters()}
    assert len(trainable) == 2
    set_training_mode(net, head)
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.Dropout))
    net(torch.randn(2, 3, image_px, image_px)).sum().backward()
    assert head.weight.grad is not None
    set_training_mode(net, net)
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_every_family_can_be_trained_from_its_last_stage_on(family):
    model = ModelSpec(name=SMALLEST[family], weights="w.pth", trainable="last_stage")
    net = build_model(model, 5, 64)
    frozen, learning = frozen_part(net, model), trainable_part(net, model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(learning(frozen(x)), net.eval()(x), atol=0, rtol=0)
    set_training_mode(net, learning)
    names = [name for name, _ in net.named_modules()]
    after = list(net.modules())[names.index(LAST_STAGE_OF[model.name]) :]
    own = {id(p) for module in after for p in module.parameters(recurse=False)}
    assert {id(p) for p in net.parameters() if p.requires_grad} == own
    assert 0 < len(own) < len(list(net.parameters()))
    assert all(module.training for module in after)
    frozen_norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m not in after]
    assert not any(norm.training for norm in frozen_norms)
    net(x).square().sum().backward()
    assert {id(p) for p in net.parameters() if p.grad is not None} == own


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("layer5", "no part 'layer5'; did you mean `layer"),
        ("nonsense", "it has conv1, bn1, relu, maxpool, layer1, layer1.0"),
        ("layer4.1.conv2", "layer4.1.conv2"),
    ],
)
def test_a_part_that_cannot_be_trained_alone_is_refused_with_the_names_there_are(part, said):
    with pytest.raises(TrainingError, match=re.escape(said)):
        build_model(ModelSpec(name="resnet18", weights="w.pth", trainable=part), 5, 64)


@pytest.mark.parametrize("name", ["cnn3", "resnet18", "mobilenet_v2"])
def test_a_head_may_have_a_hidden_layer_and_dropout(tmp_path, name):
    donor = build_model(ModelSpec(name=name), 9, 32)
    model = ModelSpec(name=name, head_hidden=16, head_dropout=0.5)
    net = build_model(model, 5, 32, saved(tmp_path / "w.pth", donor))  # of a plain network: all but the head
    dropout, hidden, _, _, last = head = head_of(net, name)
    assert (hidden.out_features, last.in_features, last.out_features) == (16, 16, 5)
    own = {f"{key}.{part}" for key, m in net.named_modules() if m is head for part in head.state_dict()}
    for key in net.state_dict().keys() - own:
        torch.testing.assert_close(net.state_dict()[key], donor.state_dict()[key])
    init_bias_to_prior(net, name, np.full(5, 0.25))
    torch.testing.assert_close(last.bias, torch.full((5,), -math.log(3)))
    set_training_mode(net, head)
    assert dropout.training
    again = build_model(model, 5, 32, saved(tmp_path / "same.pth", net))  # of the same: the head too
    torch.testing.assert_close(again.state_dict(), net.state_dict())
    (_, only) = head_of(build_model(ModelSpec(name=name, head_dropout=0.5), 5, 32), name)
    assert isinstance(only, nn.Linear)


@pytest.mark.slow
def test_every_name_is_torchvision_s_and_its_head_is_linear():
    from torchvision.models import get_model

    for name in HEAD_OF:
        # no memory and no time for the large ones; a regnet cannot be made without
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            assert isinstance(head_of(get_model(name), name), nn.Linear), name


@pytest.mark.parametrize("name", sorted(set(LAST_STAGE_OF) - set(FAMILIES["vit"][1])))
@pytest.mark.slow
def test_the_last_stage_is_where_the_resolution_falls_for_the_last_time(name):
    from torchvision.models import get_model

    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        before, after = cut_at(get_model(name).eval(), LAST_STAGE_OF[name])
        x = before(torch.zeros(1, 3, 64, 64))
        sides = [x.shape[1 if name.startswith("swin") else 2]]
        part = dict(after.named_modules())[LAST_STAGE_OF[name]]
        sides.append(part(x).shape[1 if name.startswith("swin") else 2])
    assert sides == [4, 2]


def test_an_impossible_size_is_refused_with_a_remedy():
    with pytest.raises(TrainingError, match=r"vit_b_32 does not work at train.image_px 50: .*use another"):
        build_model(ModelSpec(name="vit_b_32"), 3, 50)


# ---------------------------------------------------------------- weights


def saved(path, net, wrap=None):
    state = net.state_dict()
    torch.save({wrap: state} if wrap else state, path)
    return path


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_weights_of_another_number_of_labels_keep_all_but_the_head(tmp_path, wrap):
    donor = build_model(ModelSpec(name="resnet18"), 1000, 64)
    net = build_model(ModelSpec(name="resnet18"), 3, 64, saved(tmp_path / "w.pth", donor, wrap))
    torch.testing.assert_close(net.layer1[0].conv1.weight, donor.layer1[0].conv1.weight)
    assert net.fc.weight.shape == (3, 512)


def test_weights_of_the_same_labels_keep_the_head_too(tmp_path):
    donor = build_model(ModelSpec(name="cnn3"), 3, 32)
    net = build_model(ModelSpec(name="cnn3"), 3, 32, saved(tmp_path / "w.pth", donor))
    torch.testing.assert_close(net.state_dict(), donor.state_dict())


def test_files_without_batch_counters_and_old_densenet_names_are_taken(tmp_path):
    donor = build_model(ModelSpec(name="densenet121"), 1000, 64).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key): value
        for key, value in donor.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    net = build_model(ModelSpec(name="densenet121"), 3, 64, tmp_path / "w.pth").state_dict()
    key = "features.denseblock1.denselayer1.norm1.weight"
    torch.testing.assert_close(net[key], donor[key])


def test_weights_of_another_network_are_refused_by_name_and_shape(tmp_path):
    path = saved(tmp_path / "w.pth", build_model(ModelSpec(name="resnet34"), 3, 64))
    with pytest.raises(
        CheckpointError, match=r"w.pth: not weights for resnet18: .*is not part of it.* and \d+ more"
    ):
        build_model(ModelSpec(name="resnet18"), 3, 64, path)
    wide = build_model(ModelSpec(name="cnn3"), 3, 32)
    wide[0] = nn.Conv2d(3, 16, 3)
    with pytest.raises(CheckpointError, match=r"0.weight is \(16, 3, 3, 3\), needs \(12, 3, 3, 3\)"):
        build_model(ModelSpec(name="cnn3"), 3, 32, saved(tmp_path / "wide.pth", wide))


@pytest.mark.parametrize("body", [b"", b"no weights at all", b"PK\x03\x04 half a zip"])
def test_what_is_no_weights_file_is_refused(tmp_path, body):
    (tmp_path / "w.pth").write_bytes(body)
    with pytest.raises(CheckpointError, match=r"w.pth: cannot be read as weights"):
        build_model(ModelSpec(name="cnn3"), 3, 32, tmp_path / "w.pth")


def test_a_weights_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": subprocess.Popen}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        build_model(ModelSpec(name="cnn3"), 3, 32, tmp_path / "w.pth")


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    state = build_model(ModelSpec(name="cnn2"), 4, 16).state_dict()
    state["0.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w.pth: 0.weight holds values that are not finite"):
        build_model(ModelSpec(name="cnn2"), 4, 16, tmp_path / "w.pth")


@pytest.mark.slow
def test_positions_of_a_vit_are_fitted_to_the_size(tmp_path):
    path = saved(tmp_path / "w.pth", build_model(ModelSpec(name="vit_b_32"), 10, 64))
    net = build_model(ModelSpec(name="vit_b_32"), 3, 96, path)
    assert net.encoder.pos_embedding.shape[1] == 1 + 9


def test_the_shared_imagenet_weights_fit(shared):
    path = shared / "weights" / "mobilenet_v2-imagenet.pth"
    net = build_model(ModelSpec(name="mobilenet_v2"), 14, 64, path)
    state = torch.load(path, weights_only=True)
    torch.testing.assert_close(net.state_dict()["features.0.0.weight"], state["features.0.0.weight"])


def test_an_unknown_model_is_refused_without_importing_torch(tmp_path):
    spec = tmp_path / "x.yaml"
    spec.write_text("data: {source: a.zip}\ntrain: {model: {name: resnet35}}\n")
    code = (
        "import sys; from jobs.cli import main; status = main(['grid', sys.argv[1]]);"
        "print(status, [m for m in ('torch', 'torchvision', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(spec)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "2 []"
    assert "unknown model; did you mean `resnet50`?" in done.stderr
    assert "resnet34" in MODEL_NAMES


@pytest.mark.parametrize("name", [*CNNS, *SMALLEST.values(), "resnet50", "efficientnet_v2_s"])
@pytest.mark.slow
def test_folded_batch_norms_change_no_logit_and_no_network(name):
    torch.manual_seed(0)
    net = build_model(ModelSpec(name=name), 7, 64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: nothing at its neutral start
            for values in (module.running_mean, module.bias.data):
                nn.init.normal_(values, std=0.1)
            for values in (module.running_var, module.weight.data):
                nn.init.uniform_(values, 0.8, 1.25)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected, found = net.eval()(images), fuse_conv_bn(net)(images)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.std()), rtol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    norms = [m for m in fuse_conv_bn(net).modules() if isinstance(m, nn.BatchNorm2d)]
    if name.startswith(
        "densenet"
    ):  # whose norms stand before their convolutions, but for the second of a layer
        assert len(norms) < sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) / 1.5
    else:
        assert not norms
