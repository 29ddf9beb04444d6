"""Networks of the user's own: built, cut, scored and predicted as ours, or refused in one sentence."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.packed import PackedSet
from pipeline.errors import CheckpointError, PipelineError, TrainingError
from pipeline.evaluation.prediction import load_scorer, own_code_of
from pipeline.models.build import build_model, frozen_part, head_of, init_bias_to_prior, trainable_part
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.device import ExecutionConfig
from pipeline.models.features import FrozenNetwork
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.heads import Csra
from pipeline.own.source import OwnFiles
from pipeline.spec import ModelSpec, TrainSpec
from tests.cells import one_cell, packed_project, train
from tests.own import lab

PICTURES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def build(tmp_path):
    """build(settings, text of the module): the network, from a frozen copy."""

    def make(settings=(), nets=lab.NETS, labels=6, weights=None):
        lab.write(tmp_path, nets=nets)
        code = OwnFiles.read(tmp_path, ["mylab"]).freeze(tmp_path / "code")
        model = ModelSpec.model_validate(
            {**lab.MODEL, "weights": "w.pth" if weights else "none", **dict(settings)}
        )
        torch.manual_seed(0)
        return build_model(model, labels, 32, weights, code), model

    return make


def net_of(forward="return self.head(images.mean(dim=(2, 3)))", made="self.head = nn.Linear(3, num_labels)"):
    return (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, num_labels):\n        super().__init__()\n"
        f"        {made}\n    def forward(self, images):\n        {forward}\n"
        "def build(num_labels, image_px):\n    return Net(num_labels)\n"
    )


# settings, the module -> the error
WRONG = [
    (
        {},
        "def build(num_labels, image_px):\n    return 3\n",
        "returned int; it must return a torch.nn.Module",
    ),
    (
        {},
        net_of("return images"),
        "the network makes (2, 3, 32, 32) of 2 pictures; it must make logits (2, 6)",
    ),
    (
        {},
        net_of("return self.head(images)"),
        "mylab/nets.py:7 (in forward): RuntimeError: mat1 and mat2 shapes",
    ),
    (
        {},
        net_of("return self.haed(images)"),
        "mylab/nets.py:7 (in forward): AttributeError: 'Net' object has no",
    ),
    (
        {},
        net_of(made="self.head = nn.Linear(3, labels)"),
        "mylab/nets.py:5 (in __init__): NameError: name 'labels'",
    ),
    (
        {},
        net_of(
            "return images.mean(dim=(2, 3)) @ self.weight.T",
            "self.weight = nn.Parameter(nn.Linear(3, 6).weight)",
        ),
        "has 0 linear layers with 6 outputs (none); call the one that makes logits of features `head`",
    ),
    (
        {},
        net_of(
            "return self.b(self.a(images.mean(dim=(2, 3))))",
            "self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 6)",
        ),
        "has 2 linear layers with 6 outputs (a, b); call the one",
    ),
    (
        {"head_dropout": 0.5},
        net_of(made="self.head = nn.Sequential(nn.Linear(3, num_labels))"),
        "head_hidden and head_dropout replace a linear layer, and head is Sequential",
    ),
    (
        {"head_bias": "prior"},
        net_of(made="self.head = nn.Linear(3, num_labels, bias=False)"),
        "train.model.head_bias: prior needs a last layer with a bias a label in head; write default",
    ),
    (
        {"trainable": "head", "weights": "w.pth"},
        net_of("return 2 * self.head(images.mean(dim=(2, 3)))"),
        "train.model.trainable: head: the network's logits are not what its head (head) returns",
    ),
    (
        {"trainable": "body.0", "weights": "w.pth"},
        net_of(
            "return self.head(self.body(images.mean(dim=(2, 3)) if images.sum() > 0 else images.amax(dim=(2, 3))))",
            "self.body, self.head = nn.Sequential(nn.ReLU()), nn.Linear(3, num_labels)",
        ),
        "train.model.trainable: Net cannot be cut at 'body.0' (symbolically traced variables cannot be used as "
        "inputs to control flow); write all or head",
    ),
    (
        {"trainable": "bdy", "weights": "w.pth"},
        lab.NETS,
        "the network has no part 'bdy'; did you mean `body`?",
    ),
    (
        {"trainable": "body.1", "weights": "w.pth"},
        lab.NETS.replace("self.body(images)", "nn.functional.dropout(self.body(images), 0.5, self.training)"),
        "which would be lost behind 'body.1'; make a module of it (nn.Dropout, not functional.dropout)",
    ),
    (
        {"head": {"name": "csra"}},
        lab.NETS,
        "train.model.head: csra takes the place of 'head', so that must be given maps (B, D, rows, columns) or tokens "
        "(B, N, D) and pool them itself; that of mylab.nets:build is given (2, 8) of 2 pictures; write it e.g. as "
        "nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(D, num_labels)), or leave head out",
    ),
    (
        {"head": {"name": "csra"}},
        lab.POOLING.replace("self.body(images)", "self.body(images).permute(0, 2, 3, 1)").replace(
            "Linear(width", "Linear(8"
        ),
        "is given (2, 8, 8, 12) of 2 pictures; write it",
    ),
    (
        {"head": {"name": "csra"}},
        lab.POOLING.replace(
            "return self.head(self.body(images))",
            "return self.head(self.body(images)) + self.head(self.body(images.flip(3)))",
        ),
        "is given 0 values in 2 calls; write it",
    ),
]


@pytest.mark.parametrize(("settings", "nets", "said"), WRONG)
def test_what_a_network_lacks_is_said_in_one_sentence(build, settings, nets, said):
    with pytest.raises(TrainingError) as caught:
        build(settings, nets)
    assert str(caught.value).startswith("train.model")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_may_have_an_empty_init(build, tmp_path):
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "__init__.py").touch()
    net, _ = build()
    assert net(PICTURES).shape == (5, 6)


def test_the_head_may_have_any_name_where_it_is_the_only_one(build):
    net, model = build(nets=lab.NETS.replace("self.head", "self.fc"))
    assert head_of(net, model.name) is net.fc
    net, model = build({"head_hidden": 5, "head_dropout": 0.1}, lab.NETS.replace("self.head", "self.fc"))
    assert head_of(net, model.name) is net.fc
    assert [type(part).__name__ for part in net.fc] == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    init_bias_to_prior(net, model.name, np.full(6, 0.5))
    assert torch.equal(net.fc[-1].bias, torch.zeros(6))


@pytest.mark.parametrize("part", ["head", "body.2"])
def test_kept_features_and_what_learns_make_the_same_logits(build, part, tmp_path):
    net, _ = build()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    net, model = build({"trainable": part}, weights=tmp_path / "w.pth")
    learns = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learns == {"head.weight", "head.bias"}
    logits, after = net.eval()(PICTURES), trainable_part(net, model)
    before = frozen_part(net, model)
    assert torch.equal(after.eval()(before.eval()(PICTURES)), logits)


def test_features_of_other_code_or_options_are_not_taken_for_these(build, tmp_path, drawn):
    """The frozen weights are the same; what is made of them is not."""
    _, packed, _ = drawn
    net, _ = build()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    kept = tmp_path / "features"

    def made(nets, **options):
        built, model = build({"trainable": "head", "options": options}, nets, 14, tmp_path / "w.pth")
        train = TrainSpec(model=model, image_px=32, cached_views=1)
        execution = ExecutionConfig.choose("cpu", "fp32", 1)
        frozen = FrozenNetwork(built, train, PackedSet.open(packed), execution, folder=kept)
        return frozen.plain(np.arange(4))

    doubled = lab.NETS.replace("self.body(images)", "2 * self.body(images)")
    scaled = lab.NETS.replace("width=8):", "width=8, scale=1):").replace(
        "return Small", "Small.scale = scale; return Small"
    )
    scaled = scaled.replace("self.body(images)", "self.scale * self.body(images)")
    first = made(lab.NETS)
    assert torch.equal(made(lab.NETS), first)
    assert len([*kept.glob("*.npz")]) == 1
    assert torch.equal(made(doubled), 2 * first)
    assert torch.equal(made(scaled, scale=3), 3 * made(scaled))


def test_features_know_the_version_of_a_library_whose_parts_a_network_is_made_of(
    build, tmp_path, drawn, monkeypatch
):
    from_torchvision = lab.NETS.replace(
        "from torch import nn\n", "from torch import nn\nfrom torchvision import ops\n"
    )
    from_torchvision = from_torchvision.replace(
        "self.head =", "self.norm = ops.FrozenBatchNorm2d(3); self.head ="
    )

    def kept(nets):
        net, _ = build(nets=nets, labels=14)
        torch.save(net.state_dict(), tmp_path / "w.pth")
        net, model = build({"trainable": "head"}, nets, 14, tmp_path / "w.pth")
        train = TrainSpec(model=model, image_px=32, cached_views=1)
        folder, execution = tmp_path / "features", ExecutionConfig.choose("cpu", "fp32", 1)
        FrozenNetwork(net, train, PackedSet.open(drawn[1]), execution, folder=folder).plain(np.arange(2))
        return {path.name for path in folder.glob("*.npz")}

    before = kept(lab.NETS)
    both = kept(from_torchvision)
    monkeypatch.setattr("torchvision.__version__", "99.0")
    assert kept(lab.NETS) == both
    assert len(before) == 1
    assert len(kept(from_torchvision)) == 3


@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_csra_takes_the_place_of_a_head_that_pools(build, tmp_path, kind):
    tokens = lab.POOLING.replace("self.body(images)", "self.body(images).flatten(2).transpose(1, 2)").replace(
        "nn.AdaptiveAvgPool2d(1), nn.Flatten()", "Mean()"
    )
    nets = {"maps": lab.POOLING, "tokens": tokens}[kind]
    net, _ = build(nets=nets)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    settings = {
        "head": {"name": "csra", "heads": 2},
        "head_dropout": 0.1,
        "head_bias": "prior",
        "trainable": "head",
    }
    net, model = build(settings, nets, weights=tmp_path / "w.pth")
    head = head_of(net, model.name)
    assert isinstance(head, Csra)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        "head.classifiers_HKD",
        "head.bias",
    }
    init_bias_to_prior(net, model.name, np.full(6, 0.25))
    logits = net.eval()(PICTURES)
    maps = net.body(PICTURES)
    assert maps.shape == (5, 12, 8, 8)
    places_BND = maps.flatten(2).transpose(1, 2)
    assert torch.equal(head.features.places(maps if kind == "maps" else places_BND), places_BND)
    torch.testing.assert_close(head.pooled(maps if kind == "maps" else places_BND), maps.mean(dim=(2, 3)))
    assert torch.equal(head(frozen_part(net, model)(PICTURES)), logits)


def test_parts_that_only_look_like_convolution_and_norm_are_not_fused(build):
    """In the order of their names they follow each other, in forward there is something between them."""
    nets = net_of(
        "return self.head(self.norm(self.conv(images).relu()).mean(dim=(2, 3)))",
        "self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, num_labels)",
    )
    net, _ = build(nets=nets)
    net.norm.running_mean += 0.5
    logits = net.eval()(PICTURES)
    assert torch.equal(fuse_conv_bn(net)(PICTURES), logits)
    net, _ = build()  # a sequence runs as it is written
    fused = fuse_conv_bn(net)
    assert isinstance(fused.body[1], nn.Identity)
    torch.testing.assert_close(fused(PICTURES), net.eval()(PICTURES))


@pytest.fixture
def trained(tmp_path, drawn_zip):
    """trained(name): a finished cell with a network of its own."""

    def make(name="a", **changed):
        spec = packed_project(tmp_path / name, drawn_zip, epochs=1, model=lab.MODEL, precision="fp32")
        lab.write(tmp_path / name, **changed)
        cell = one_cell(spec)
        assert train(cell) == 0
        return cell

    return make


def test_a_cell_is_loaded_with_its_own_copy_beside_one_of_another_version(trained):
    """Both are called mylab.nets; the second one doubles its logits."""
    one = trained()
    other = trained("b", nets=lab.NETS.replace("return self.head", "return 2 * self.head"))
    assert one.identity != other.identity
    bests = [load_checkpoint(cell.run.checkpoint_best) for cell in (one, other)]
    nets = [
        load_scorer(best | {"model": bests[0]["model"]}, "cpu", own_code_of(cell.run, best)).net.eval()
        for best, cell in zip(bests, (one, other), strict=True)
    ]
    assert torch.equal(2 * nets[0](PICTURES), nets[1](PICTURES))


def test_a_cell_without_its_code_says_what_to_copy(trained):
    run = trained().run
    best = load_checkpoint(run.checkpoint_best)
    run.own_code.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"own_code.zip: does not match its digest"):
        own_code_of(run, best)
    run.own_code.unlink()
    with pytest.raises(
        CheckpointError, match=r"its code \(mylab.nets:build\) makes the network; copy it from where"
    ):
        own_code_of(run, best)
    with pytest.raises(PipelineError, match=r"mylab.nets:build: its code is not here"):
        load_scorer(best, "cpu")
