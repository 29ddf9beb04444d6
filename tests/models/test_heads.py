"""Heads on features before the pooling: CSRA against the paper's formula, in every family, everywhere a cell goes."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import CheckpointError, TrainingError
from pipeline.models.build import (
    build_model,
    frozen_part,
    head_of,
    init_bias_to_prior,
    set_training_mode,
    trainable_part,
)
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.heads import Csra, Features
from pipeline.models.layers import layers_of
from pipeline.predictor import Predictor
from pipeline.spec import CsraHead, ModelSpec
from pipeline.storage.jsonl import read_jsonl
from tests.cells import jobs, one_cell, packed_project, project, train
from tests.models.test_build import SMALLEST
from tests.models.test_timm import FAMILIES

NETWORKS = [*SMALLEST.values(), "mobilenet_v2"]
TEMPERATURES = {
    1: (1,),
    2: (1, None),
    4: (1, 2, 4, None),
    6: (1, 2, 3, 4, 5, None),
    8: (1, 2, 3, 4, 5, 6, 7, None),
}


def by_the_paper(places_BND, classifiers_HKD, bias_K, weight, temperatures):
    """The text of Zhu & Wu 2021, picture by picture and label by label; None is a maximum."""
    logits_BK = np.zeros((len(places_BND), classifiers_HKD.shape[1]))
    for b, x_ND in enumerate(places_BND):
        for k, bias in enumerate(bias_K):
            logits_BK[b, k] = bias
            for h, temperature in enumerate(temperatures):
                m_D = classifiers_HKD[h, k] / np.sqrt((classifiers_HKD[h, k] ** 2).sum())
                scores_N = np.array([x_D @ m_D for x_D in x_ND])
                if temperature is None:
                    attention_D = x_ND[np.argmax(scores_N)]
                else:
                    s_N = np.exp(temperature * scores_N)
                    attention_D = sum(s * x_D for s, x_D in zip(s_N / s_N.sum(), x_ND, strict=True))
                mean_D = x_ND.mean(axis=0)
                logits_BK[b, k] += (mean_D + weight * attention_D) @ m_D
    return logits_BK


@pytest.mark.parametrize("layout", ["maps", "channels last", "tokens", "tokens behind two others"])
@pytest.mark.parametrize("heads", TEMPERATURES)
def test_csra_is_the_paper_s_formula(heads, layout):
    torch.manual_seed(heads)
    maps_BDhw = torch.randn(3, 5, 4, 3)
    places_BND = maps_BDhw.flatten(2).transpose(1, 2)
    features, given = {
        "maps": (Features(5), maps_BDhw),
        "channels last": (Features(5, axis=3), maps_BDhw.permute(0, 2, 3, 1)),
        "tokens": (Features(5), places_BND),
        "tokens behind two others": (
            Features(5, prefix=2),
            torch.cat([torch.randn(3, 2, 5), places_BND], dim=1),
        ),
    }[layout]
    head = Csra(CsraHead(name="csra", heads=heads, attention_weight=0.4), features, 7, 0.0)
    torch.nn.init.normal_(head.bias)
    values = [
        tensor.detach().numpy().astype(np.float64) for tensor in (places_BND, head.classifiers_HKD, head.bias)
    ]
    expected = by_the_paper(*values, 0.4, TEMPERATURES[heads])
    np.testing.assert_allclose(head(given).detach().numpy(), expected, atol=1e-5)
    torch.testing.assert_close(head.pooled(given), maps_BDhw.mean(dim=(2, 3)))


# ---------------------------------------------------------------- in networks


def csra(name, weights="w.pth", heads=2, **settings):
    return ModelSpec(name=name, head={"name": "csra", "heads": heads}, weights=weights, **settings)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_csra_takes_the_maps_of_every_family(name):
    torch.manual_seed(0)
    model = csra(name, trainable="head", head_dropout=0.2)
    plain = build_model(ModelSpec(name=name), 7, 64).eval()
    net = build_model(model, 7, 64).eval()
    head = head_of(net, name)
    assert isinstance(head, Csra)
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in head.parameters()}
    (where,) = (key for key, module in net.named_modules() if module is head)
    shared = {key: value for key, value in plain.state_dict().items() if not key.startswith(where + ".")}
    # every part keeps its name, so that published weights fit
    wrong = net.load_state_dict(shared, strict=False)
    assert {*wrong.missing_keys, *wrong.unexpected_keys} == {f"{where}.{key}" for key in head.state_dict()}
    x, seen = torch.randn(2, 3, 64, 64), {}
    for key, one in {"pooled": plain, "maps": net}.items():
        head_of(one, name).register_forward_pre_hook(lambda _, given, key=key: seen.update({key: given[0]}))
        assert one(x).shape == (2, 7)
    places = head.features.places(seen["maps"])
    assert places.shape[2] == seen["pooled"].shape[1]
    if name.startswith("vit"):
        assert places.shape[1] == 4
        torch.testing.assert_close(seen["maps"][:, 0], seen["pooled"])
    elif name not in ("convnext_tiny", "mobilenet_v3_small"):  # have a norm or a layer behind the pooling
        torch.testing.assert_close(places.mean(dim=1), seen["pooled"], atol=1e-5, rtol=1e-4)
    expected = net(x)
    init_bias_to_prior(net, name, np.full(7, 0.25))
    torch.testing.assert_close(head.bias, torch.full((7,), -math.log(3)))
    torch.testing.assert_close(net(x), expected - math.log(3))
    layers = layers_of(net, head)
    assert {layers[f"{where}.{key}"] for key in head.state_dict()} == {max(layers.values())}
    set_training_mode(net, net)
    net(x).square().sum().backward()
    assert not [key for key, p in net.named_parameters() if p.grad is None]
    expected = net.eval()(x)
    torch.testing.assert_close(head(frozen_part(net, model)(x)), expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_csra_can_be_trained_from_the_last_stage_on(name):
    model = csra(name, trainable="last_stage")
    net = build_model(model, 5, 64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            trainable_part(net, model)(frozen_part(net, model)(x)), net(x), atol=0, rtol=0
        )
    assert 2 < sum(p.requires_grad for p in net.parameters()) < len(list(net.parameters()))


def test_published_weights_fit_and_those_of_the_same_head_are_taken_whole(tmp_path):
    plain, net = (
        build_model(ModelSpec(name="mobilenet_v2"), 1000, 64),
        build_model(csra("mobilenet_v2"), 5, 64),
    )
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    torch.save(net.state_dict(), tmp_path / "csra.pth")
    of_plain = build_model(csra("mobilenet_v2"), 5, 64, tmp_path / "plain.pth").state_dict()
    backbone = [key for key in plain.state_dict() if key.startswith("features.")]
    assert all(torch.equal(of_plain[key], plain.state_dict()[key]) for key in backbone)
    again = build_model(csra("mobilenet_v2"), 5, 64, tmp_path / "csra.pth").state_dict()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.items())
    for other in (build_model(csra("mobilenet_v2"), 4, 64, tmp_path / "csra.pth"),
                  build_model(ModelSpec(name="mobilenet_v2"), 5, 64, tmp_path / "csra.pth")):  # fmt: skip
        assert torch.equal(
            other.state_dict()["features.18.0.weight"], net.state_dict()["features.18.0.weight"]
        )


def test_weights_of_a_network_that_pools_by_attention_are_taken_with_and_without_its_pooling(tmp_path):
    def state(model, file=None, labels=5):
        torch.manual_seed(0 if file is None else 1)
        weights = tmp_path / file if file else None
        return build_model(model, labels, 64, weights).state_dict()

    siglip = "timm/test_vit3"
    plain, made = state(ModelSpec(name=siglip)), state(csra(siglip))
    torch.save(plain, tmp_path / "plain.pth")
    torch.save(made, tmp_path / "csra.pth")
    assert any(key.startswith("attn_pool.") for key in plain)
    assert not any(key.startswith("attn_pool.") for key in made)
    again, other, of_plain = (
        state(csra(siglip), "csra.pth"),
        state(csra(siglip), "csra.pth", labels=4),
        state(csra(siglip), "plain.pth"),
    )
    assert all(torch.equal(again[key], value) for key, value in made.items())
    backbone = [key for key in made if not key.startswith("head.")]
    assert all(torch.equal(other[key], made[key]) for key in backbone)
    assert all(torch.equal(of_plain[key], plain[key]) for key in backbone)
    assert not torch.equal(of_plain["head.classifiers_HKD"], made["head.classifiers_HKD"])
    with pytest.raises(CheckpointError, match=r"attn_pool\.latent is missing"):
        state(ModelSpec(name=siglip, weights="csra.pth"), "csra.pth")


# features of a place of a picture: how many, how many places
OF_TIMM = {
    "resnet": (96, 4), "efficientnet": (256, 4), "convnext": (64, 4), "regnet": (368, 4), "mobilenetv3": (1024, 4),
    "mobilenetv4": (1280, 4), "vit": (64, 16), "eva": (192, 16), "dinov3": (384, 16), "clip": (256, 16),
    "swin": (768, 4), "maxvit": (128, 4),
}  # fmt: skip


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in ("resnet", "vit") else pytest.mark.slow) for name in OF_TIMM],
)
def test_csra_takes_the_maps_and_tokens_of_timm(family, tmp_path):
    name, px, _ = FAMILIES[family]
    torch.manual_seed(0)
    plain = build_model(ModelSpec(name=f"timm/{name}", weights="none"), 1000, px)
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    model = csra(f"timm/{name}", trainable="head")
    net = build_model(model, 5, px, tmp_path / "w.pth").eval()
    head, x = head_of(net, model.name), torch.randn(2, 3, px, px)
    where = net.labelgrid_head
    own, published = (
        {key: value.flatten() for key, value in one.state_dict().items() if not key.startswith(where + ".")}
        for one in (net, plain)
    )
    torch.testing.assert_close(own, published, atol=0, rtol=0)
    seen = []
    with torch.no_grad(), head.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        expected = net(x)
    assert expected.shape == (2, 5)
    features, places = OF_TIMM[family]
    assert head.features.places(seen[0]).shape == (2, places, features)
    with torch.no_grad():
        torch.testing.assert_close(fuse_conv_bn(net)(x), expected, atol=1e-4, rtol=1e-3)
        layers = layers_of(net, head)
        assert {layers[f"{where}.{key}"] for key in head.state_dict()} == {max(layers.values())}
        torch.testing.assert_close(head(frozen_part(net, model)(x)), expected, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_csra_of_timm_can_be_trained_from_the_last_stage_on(family):
    name, px, _ = FAMILIES[family]
    net = build_model(csra(f"timm/{name}", trainable="last_stage"), 5, px)  # which tries both parts
    assert 2 < sum(p.requires_grad for p in net.parameters()) < len(list(net.parameters()))


@pytest.mark.slow
def test_a_network_that_pools_by_its_own_code_is_refused():
    with pytest.raises(
        TrainingError, match=r"train.model.head: csra needs .*timm/coat_lite_tiny gives none; leave"
    ):
        build_model(csra("timm/coat_lite_tiny"), 5, 64)


# ---------------------------------------------------------------- in cells


@pytest.mark.slow
def test_a_cell_with_csra_trains_on_kept_maps_as_without_and_is_predicted(tmp_path, drawn_zip):
    torch.manual_seed(0)
    weights = tmp_path / "net.pth"
    torch.save(build_model(ModelSpec(name="mobilenet_v3_small"), 14, 64).state_dict(), weights)
    head = {"name": "csra", "heads": 2, "attention_weight": 0.5}
    model = {"name": "mobilenet_v3_small", "weights": str(weights), "trainable": "head", "head_bias": "prior"}
    settings = {"image_px": 64, "precision": "fp32", "augment": {"hflip": 0.0}, "epochs": 1}
    settings["optimizer"] = {"name": "sgd", "lr": 0.1, "layer_decay": 0.9}

    def trained(spec):
        cell = one_cell(spec)
        assert train(cell) == 0, cell.run.log.read_text()
        return cell.run

    def losses(run):
        return [row["validation/loss"] for row in read_jsonl(run.metrics) if "validation/loss" in row]

    pixels = trained(packed_project(tmp_path / "pixels", drawn_zip, model=model | {"head": head}, **settings))
    settings["cached_views"] = 1
    linear = packed_project(tmp_path / "kept", drawn_zip, model=model, name="linear", **settings)
    trained(linear)  # its features are of the same part, and no maps
    spec = project(tmp_path / "kept", drawn_zip, model=model | {"head": head}, **settings)
    run = trained(spec)
    np.testing.assert_allclose(losses(run), losses(pixels), rtol=1e-3)
    _, printed = jobs("doctor", spec, cwd=tmp_path / "kept")
    # 2 x 2 places behind the hidden layer of 1,024
    assert "mobilenet_v3_small: 4,096 of a picture" in printed
    made = Predictor.load(run.path, device="cpu")
    pictures = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(3)]
    embeddings_BD = torch.from_numpy(made.embeddings(pictures))
    assert embeddings_BD.shape == (3, 1024)
    one = made(pictures[0])
    assert one.scores == pytest.approx(made(pictures)[0].scores, abs=1e-6)
    csra_head = head_of(made.scorers[0].net, "mobilenet_v3_small")
    mean_logits_BK = by_the_paper(
        embeddings_BD[:1, None].numpy(), csra_head.classifiers_HKD.detach().numpy(), csra_head.bias.detach().numpy(),
        0.5, TEMPERATURES[2],
    )  # fmt: skip
    # of one place alone, the mean: the attention only adds to it
    logits_BK = torch.logit(torch.tensor([[one.scores[label] for label in made.labels]])).numpy()
    assert (logits_BK > mean_logits_BK - 1e-4).all()


@pytest.mark.parametrize("name", ["timm/test_vit", "resnet18"])
@pytest.mark.slow  # torch's exporter takes seconds
def test_csra_is_exported_to_onnx_for_any_batch(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    net = build_model(csra(name, heads=4), 5, 64).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (torch.randn(2, 3, 64, 64),), dynamic_shapes=shapes)
    torch.onnx.export(program, input_names=["x"], output_names=["y"], verbose=False).save(tmp_path / "m.onnx")
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 64, 64)
    (found,) = session.run(["y"], {"x": images.numpy()})
    np.testing.assert_allclose(found, net(images).detach(), atol=1e-4)
