"""Networks of timm: head, last stage, features and weights of thirteen families, with random weights of small ones."""

import copy
import functools
import re
import sys

import pytest
import torch
from torch import nn

from pipeline.errors import CheckpointError, TrainingError
from pipeline.models.build import (
    build_model,
    frozen_part,
    head_of,
    refuse_other_size,
    set_training_mode,
    trainable_part,
)
from pipeline.models.fusing import fuse_conv_bn, watching_norms
from pipeline.spec import ModelSpec

# family -> a small network, a small size it takes, the last stage
FAMILIES = {
    "resnet": ("test_resnet", 64, "layer4"),
    "efficientnet": ("test_efficientnet", 64, "blocks.4"),
    "convnext": ("test_convnext", 64, "stages.3"),
    "regnet": ("regnetx_002", 64, "s4"),
    "mobilenetv3": ("mobilenetv3_small_050", 64, "blocks.4"),
    "mobilenetv4": ("mobilenetv4_conv_small_035", 64, "blocks.3"),
    "vit": ("test_vit", 64, "blocks.5"),
    "eva": ("eva02_tiny_patch14_224", 56, "blocks.9"),
    "dinov3": ("vit_small_patch16_dinov3", 64, "blocks.9"),
    "clip": ("vit_xsmall_patch16_clip_224", 64, "blocks.8"),
    "siglip": ("test_vit3", 64, "blocks.7"),  # pools by attention, as SigLIP
    "swin": ("swin_tiny_patch4_window7_224", 64, "layers.3"),
    "maxvit": ("test_maxvit", 64, "stages.3"),
}
LABELS = 5
small = pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in ("resnet", "vit") else pytest.mark.slow) for name in FAMILIES],
)


def spec(family, **settings):
    name, *_ = FAMILIES[family]
    return ModelSpec(name=f"timm/{name}", **{"weights": "w.pth", **settings})


@functools.cache
def _built(family):
    torch.manual_seed(0)
    net = build_model(spec(family), LABELS, FAMILIES[family][1])
    for name, values in net.named_parameters():  # as after training: nothing at zero or at its neutral start
        if values.ndim < 2 or "embed" in name or name.startswith("head"):
            nn.init.normal_(values, mean=float(values.detach().mean()), std=0.1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.25)
    return net.eval()


def built(family):
    """A network of the family, and pictures for it."""
    px = FAMILIES[family][1]
    return copy.deepcopy(_built(family)), torch.randn(
        3, 3, px, px, generator=torch.Generator().manual_seed(1)
    )


@small
def test_the_head_is_one_layer_of_k_labels_on_the_features(family):
    net, pictures = built(family)
    model = spec(family, trainable="head")
    head = head_of(net, model.name)
    assert isinstance(head, nn.Linear | nn.Conv2d)
    assert head.weight.shape[0] == LABELS
    with torch.inference_mode():
        whole = net(pictures)
        assert whole.shape == (3, LABELS)
        assert float(whole.std()) > 1e-3
        features = frozen_part(copy.deepcopy(net), model)(pictures)
        assert torch.equal(trainable_part(net, model)(features), whole)
    set_training_mode(net, head)
    net(pictures).square().sum().backward()
    assert {id(p) for p in net.parameters() if p.grad is not None} == {id(p) for p in head.parameters()}


@small
def test_kept_features_of_a_last_stage_are_the_whole_network_bit_for_bit(family):
    net, pictures = built(family)
    model = spec(family, trainable="last_stage")
    frozen, learning = frozen_part(net, model), trainable_part(net, model)
    with torch.inference_mode():
        features = frozen(pictures)
        assert features.ndim in (3, 4)  # tokens (B, N, D) or maps
        assert torch.equal(learning(features), net(pictures))
    set_training_mode(net, learning)
    names = [name for name, _ in net.named_modules()]
    first = names.index(FAMILIES[family][2])
    own = {id(p) for module in list(net.modules())[first:] for p in module.parameters(recurse=False)}
    assert {id(p) for p in net.parameters() if p.requires_grad} == own
    assert 0 < len(own) < len(list(net.parameters()))
    net(pictures).square().sum().backward()
    assert {id(p) for p in net.parameters() if p.grad is not None} == own


@small
def test_a_whole_network_learns_in_a_step(family):
    net, pictures = built(family)
    set_training_mode(net, net)
    before = [p.detach().clone() for p in net.parameters()]
    loss = nn.functional.binary_cross_entropy_with_logits(net(pictures), torch.ones(3, LABELS))
    loss.backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert sum(moved) > 0.9 * len(moved)


@small
def test_fused_batch_norms_change_no_logit(family):
    net, pictures = built(family)
    with torch.inference_mode():
        expected, found = net(pictures), fuse_conv_bn(net)(pictures)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.std()), rtol=1e-4)
    left = [sum(isinstance(m, nn.BatchNorm2d) for m in each.modules()) for each in (net, fuse_conv_bn(net))]
    assert left[1] < max(left[0], 1)


def test_an_activation_inside_a_norm_outlives_the_fusing():
    from timm.layers import BatchNormAct2d

    net = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)).eval()
    net[1].bias.data.fill_(-1.0)
    fused = fuse_conv_bn(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    pictures = torch.randn(2, 3, 8, 8)
    assert float(fused(pictures).detach().min()) == 0.0
    torch.testing.assert_close(fused(pictures), net(pictures))


def test_convolutions_that_scale_their_weights_anew_are_not_fused():
    from timm.layers import StdConv2d

    net = nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    net[1].weight.data.fill_(2.0)
    pictures = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fuse_conv_bn(net)(pictures), net(pictures))


class TwoBranches(nn.Module):
    """As RepViT: the norm behind a convolution in the order of parts is given a sum."""

    def __init__(self):
        super().__init__()
        self.other, self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, pictures):
        return self.norm(self.conv(pictures) + self.other(pictures))


def test_a_norm_that_is_given_more_than_its_convolution_is_left_apart_in_every_copy(monkeypatch):
    monkeypatch.setattr(TwoBranches, "__module__", "timm.models.repvit")  # whose parts run as they are listed
    net, pictures = TwoBranches().eval(), torch.randn(2, 3, 8, 8)
    net.norm.weight.data.fill_(2.0)
    expected = net(pictures)
    assert not torch.allclose(
        fuse_conv_bn(net)(pictures), expected
    )  # what a look at the parts alone would do
    with watching_norms(net):
        net(pictures)
    torch.testing.assert_close(fuse_conv_bn(copy.deepcopy(net))(pictures), expected)


def test_learnt_positions_that_every_block_uses_keep_a_network_whole():
    model = ModelSpec(name="timm/vit_small_patch16_rope_mixed_224", weights="w.pth", trainable="blocks.1")
    with pytest.raises(
        TrainingError, match=r"what follows 'blocks.1' also needs what 'rope\..*; .*write all or head"
    ):
        build_model(model, LABELS, 32)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("name", "px", "said"),
    [
        (
            "test_vit",
            50,
            "timm/test_vit does not work at train.image_px 50: its patches are 16 px, of which 50 is",
        ),
        ("test_maxvit", 20, "does not work at train.image_px 20: .*use 160, which it was made for"),
        ("levit_128s", 224, "timm/levit_128s has 2 layers that make logits, and a head is one"),
    ],
)
def test_a_network_or_size_that_cannot_be_is_told_with_a_remedy(name, px, said):
    with pytest.raises(TrainingError, match=said):
        build_model(ModelSpec(name=f"timm/{name}"), LABELS, px)


@pytest.mark.slow
def test_patches_that_overlap_take_a_size_that_is_no_multiple_of_them():
    model = ModelSpec(name="timm/pvt_v2_b0", weights="w.pth", trainable="last_stage")
    net = build_model(model, LABELS, 64).eval()  # of patches of 7 px, 4 apart
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    net(pictures).square().sum().backward()
    assert (pictures.grad.abs().sum(dim=(0, 1)) > 0).all()
    with torch.inference_mode():
        features = frozen_part(net, model)(pictures)
        assert torch.equal(trainable_part(net, model)(features), net(pictures))


def test_another_size_for_the_final_scores_is_refused_at_the_start_where_the_network_takes_one():
    net = build_model(spec("vit"), LABELS, 64)
    with pytest.raises(
        TrainingError, match=r"train.eval_image_px: timm/test_vit takes pictures of train.image_px"
    ):
        refuse_other_size(net, "timm/test_vit", 96)
    refuse_other_size(build_model(spec("resnet"), LABELS, 64), "timm/test_resnet", 96)


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        TrainingError, match=re.escape("needs the package timm: pip install 'labelgrid[timm]'")
    ):
        build_model(spec("vit"), LABELS, 64)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_weights_of_a_file_are_all_but_a_head_of_other_labels(tmp_path, family, ending):
    from safetensors.torch import save_file

    donor, _ = built(family)
    path = tmp_path / f"w.{ending}"
    (torch.save if ending == "pth" else save_file)(donor.state_dict(), path)
    px = FAMILIES[family][1]
    net = build_model(spec(family, head_dropout=0.5), 3, px, path).state_dict()
    head = ("fc.", "head.")
    assert all(
        torch.equal(net[key], value) for key, value in donor.state_dict().items() if not key.startswith(head)
    )
    again = build_model(spec(family), LABELS, px, path).state_dict()
    assert all(torch.equal(again[key], value) for key, value in donor.state_dict().items())


def test_positions_are_fitted_to_the_size_as_timm_fits_them(tmp_path):
    import timm

    donor, _ = built("vit")
    state = donor.state_dict()
    torch.save(state, tmp_path / "w.pth")
    net = build_model(spec("vit"), LABELS, 96, tmp_path / "w.pth").state_dict()
    overlay = {"state_dict": dict(state), "num_classes": LABELS}
    same = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=LABELS, img_size=96
    )
    assert net["pos_embed"].shape[1] == 1 + 36
    assert net.keys() == same.state_dict().keys()
    assert all(torch.equal(net[key], value) for key, value in same.state_dict().items())


@pytest.mark.slow
def test_names_of_an_older_file_are_brought_to_timm_s(tmp_path):
    model = ModelSpec(name="timm/densenet121", weights="w.pth")
    donor = build_model(model, LABELS, 32).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key): value
        for key, value in donor.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save({"state_dict": old}, tmp_path / "w.pth")
    net = build_model(model, LABELS, 32, tmp_path / "w.pth").state_dict()
    assert all(torch.equal(net[key], value) for key, value in donor.items())


@pytest.mark.parametrize(("donor", "family"), [("resnet", "vit"), ("vit", "resnet")])
def test_weights_of_another_network_are_refused_by_name(tmp_path, donor, family):
    torch.save(built(donor)[0].state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=rf"w.pth: not weights for timm/test_{family}: .* and \d+ more; correct"
    ):
        build_model(spec(family), LABELS, 64, tmp_path / "w.pth")


def test_a_broken_file_of_safetensors_is_told(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match=r"w.safetensors: cannot be read as weights"):
        build_model(spec("resnet"), LABELS, 64, tmp_path / "w.safetensors")
