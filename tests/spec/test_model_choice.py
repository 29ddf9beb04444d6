"""Which names and weights of networks a spec may hold, and what is meant by others."""

import subprocess
import sys

import pytest

from pipeline.errors import SpecError
from pipeline.spec import IMAGENET, ModelSpec
from pipeline.spec.identity import canonical, cell_identity
from pipeline.spec.model_choice import CATALOGUE_VERSION, size_note
from pipeline.spec.reading import dump, read_spec
from pipeline.spec.timm_catalogue import find
from tests.conftest import ROOT

HALF = ((0.5,) * 3, (0.5,) * 3, "bicubic")


def read(tmp_path, model):
    path = tmp_path / "x.yaml"
    path.write_text(f"data: {{source: a.zip}}\ntrain: {{model: {model}}}\n")
    return read_spec(path).spec.train.model


@pytest.mark.parametrize(
    ("model", "weights", "preprocessing"),
    [
        ("{name: timm/resnet18.a1_in1k}", "pretrained", IMAGENET._replace(interpolation="bicubic")),
        ("{name: timm/resnet18.a1_in1k, weights: none}", "none", IMAGENET._replace(interpolation="bicubic")),
        ("{name: timm/resnet18.tv_in1k}", "pretrained", IMAGENET),
        ("{name: timm/vit_tiny_patch16_224.augreg_in21k}", "pretrained", HALF),
        ("{name: timm/vit_tiny_patch16_224}", "none", HALF),  # timm's own, whatever the weights
        ("{name: tf_efficientnet_lite0}", None, "did you mean `timm/tf_efficientnet_lite0`?"),
        ("{name: efficientnet_lite}", None, "did you mean `timm/efficientnet_lite"),
        ("{name: timm/convnext_tinny}", None, "did you mean `timm/convnext_tiny`"),
        ("{name: timm/resnet18.a1_in2k}", None, "did you mean `timm/resnet18.a1_in1k`"),
        ("{name: timm/nothing_like_it}", None, "has none of this name: timm.list_models() lists its names"),
        ("{name: resnet34, weights: pretrained}", None, "of resnet34 write IMAGENET1K_V1"),
        (
            "{name: cnn3, weights: pretrained}",
            None,
            "cnn3 has no published weights; write weights: none or a file",
        ),
        (
            "{name: timm/resnet18, weights: pretrained}",
            None,
            "name it timm/resnet18.a1_in1k, timm/resnet18.a2_in1k",
        ),
        ("{name: timm/resnet18, weights: IMAGENET1K_V1}", None, "name it timm/resnet18.a1_in1k"),
        (
            "{name: timm/test_vit.r160_in1k, weights: IMAGENET1K_V1}",
            None,
            "and weights: pretrained, says which",
        ),
        ("{name: timm/convnext_base, weights: ./w.pth}", None, "name the tag that your file is of"),
        ("{name: timm/resnet18, weights: imagenet}", None, "pretrained with a tag in its name"),
    ],
)
def test_names_and_weights_of_timm(tmp_path, model, weights, preprocessing):
    if weights is None:
        with pytest.raises(SpecError) as refused:
            read(tmp_path, model)
        assert preprocessing in str(refused.value)
        return
    found = read(tmp_path, model)
    assert (found.weights, found.preprocessing) == (weights, preprocessing)
    assert found.named_weights == (weights == "pretrained")


def test_the_weights_that_a_tag_means_stand_in_the_resolved_spec_and_its_identity(tmp_path):
    (tmp_path / "x.yaml").write_text("data: {source: a.zip}\ntrain: {model: {name: timm/resnet18.a1_in1k}}\n")
    spec = read_spec(tmp_path / "x.yaml").spec
    (tmp_path / "y.yaml").write_text(dump(spec))
    assert "weights: pretrained" in dump(spec)
    assert read_spec(tmp_path / "y.yaml").spec.train == spec.train
    assert canonical(spec.train.model)["weights"] == "pretrained"
    random = spec.train.model_copy(update={"model": ModelSpec(name="timm/resnet18.a1_in1k", weights="none")})
    assert cell_identity(spec.train, "", None) != cell_identity(random, "", None)


def test_a_name_that_only_a_newer_timm_may_know_is_left_to_it():
    code = (
        "import importlib.metadata as m; m.version = lambda name: '9.0.0'\n"
        "from pipeline.spec import IMAGENET, ModelSpec\n"
        "print(ModelSpec(name='timm/nothing_like_it').preprocessing == IMAGENET)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr


def test_the_catalogue_is_of_the_version_it_says():
    import timm

    here = tuple(map(int, timm.__version__.split(".")[:3]))
    if here != CATALOGUE_VERSION:
        pytest.skip("another timm is installed")
    assert all(find(name) is not None for name in timm.list_models())


def test_nothing_is_imported_to_check_a_name():
    code = (
        "import sys; from pipeline.spec import ModelSpec; ModelSpec(name='timm/resnet18.a1_in1k');"
        "print([m for m in ('timm', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_networks_that_take_one_size_have_no_other_for_final_scores(tmp_path):
    text = "data: {source: a.zip}\ntrain: {eval_image_px: 96, image_px: 64, model: {name: timm/NAME}}\n"
    (tmp_path / "x.yaml").write_text(text.replace("NAME", "resnet18"))
    assert read_spec(tmp_path / "x.yaml").spec.train.eval_image_px == 96
    (tmp_path / "x.yaml").write_text(text.replace("NAME", "vit_tiny_patch16_224"))
    with pytest.raises(SpecError, match="has one size of input; leave eval_image_px out"):
        read_spec(tmp_path / "x.yaml")


@pytest.mark.parametrize(("px", "said"), [(96, True), (160, False), (224, False), (320, False), (384, True)])
def test_a_size_far_from_the_weights_own_is_noted(px, said):
    assert (size_note("timm/vit_tiny_patch16_224.augreg_in21k", "pretrained", px) is not None) == said
    assert size_note("timm/vit_tiny_patch16_224", "none", px) is None
    assert size_note("resnet34", "IMAGENET1K_V1", px) is None
