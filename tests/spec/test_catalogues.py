"""The tables of networks are those of the installed torchvision and timm (in CI the locked ones)."""

import subprocess
import sys

import pytest

from jobs.local.snapshot import snapshot
from pipeline.spec.licences import hub_page, licence_notes, licence_of, limits
from pipeline.spec.model_names import HEAD_OF, IMAGENET, OTHER_NORMALISATIONS
from pipeline.spec.timm_catalogue import catalogue, find, near
from pipeline.spec.torchvision_catalogue import torchvision_weights
from tests import timm_catalogue as of_timm
from tests import torchvision_catalogue as of_torchvision
from tests.conftest import ROOT

WRITE = "write it again with `python tests/{}.py`, and look at what changed"


def test_the_table_of_torchvision_is_the_installed_one_s():
    written = of_torchvision.TARGET.read_text().splitlines()[1:]
    wanted = ["\t".join(row) for row in of_torchvision.rows()]
    assert written == wanted, WRITE.format("torchvision_catalogue")
    assert {name for name, _ in torchvision_weights()} == set(HEAD_OF)


@pytest.mark.slow
def test_the_table_of_timm_is_the_installed_one_s():
    written = [row[: len(of_timm.COLUMNS) - 2] for row in of_timm.read()]
    assert written == of_timm.rows(), WRITE.format("timm_catalogue")


# of each kind of network one, small: what can be counted at once
COUNTED = ("resnet18.a1_in1k", "vit_tiny_patch16_224.augreg_in21k", "mobilenetv4_conv_small.e2400_r224_in1k",
           "convnext_atto.d2_in1k", "efficientnet_lite0.ra_in1k", "swin_tiny_patch4_window7_224.ms_in1k")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_parameters_and_gflops_of_timm_are_those_of_the_network(name):
    model = find(name)
    net = of_timm.build(name, model.image_px)
    assert model.params_m == float(of_timm.params_m(net))
    assert model.gflops == float(of_timm.gflops(net, model.image_px))


def test_gflops_are_those_of_papers():
    assert find("resnet50.a1_in1k").gflops == pytest.approx(
        4.1, abs=0.05
    )  # He et al. 2016: 3.8, stride moved since
    assert find("vit_base_patch16_224.augreg_in1k").gflops == pytest.approx(
        17.6, abs=0.8
    )  # Touvron et al. 2021
    assert find("convnext_tiny.fb_in1k").gflops == pytest.approx(4.5, abs=0.05)  # Liu et al. 2022
    for name in ("resnet50", "convnext_tiny", "densenet121"):  # as torchvision counts them
        theirs = next(one for (model, _), one in torchvision_weights().items() if model == name)
        ours = next(
            model for model in catalogue().values() if model.architecture == name and model.image_px == 224
        )
        assert ours.gflops == pytest.approx(theirs.gflops, rel=0.03)


def test_an_architecture_alone_means_timm_s_default_weights():
    assert find("timm/resnet50").name == "resnet50.a1_in1k"
    assert find("timm/convnext_tiny").name == "convnext_tiny.in12k_ft_in1k"
    assert find("resnet50.nobody") is None
    assert near("timm/convnext_tinny")[0].startswith("timm/convnext_tiny")


def test_the_input_of_networks_is_theirs():
    assert find("resnet50.a1_in1k").preprocessing == IMAGENET._replace(interpolation="bicubic")
    assert find("resnet18.tv_in1k").preprocessing == IMAGENET
    assert find("tf_efficientnet_lite0.in1k").preprocessing[:2] == OTHER_NORMALISATIONS["efficientnet_v2_l"]
    assert find("vit_base_patch16_clip_224.openai").preprocessing.std[0] == 0.26862954
    assert find("gcvit_base.in1k").hub.startswith("https://github.com/")


def test_licences_say_what_they_forbid():
    def notes(name, weights="pretrained"):
        return licence_notes([(name, weights)] * 2)

    assert notes("timm/resnet50.a1_in1k") == notes("resnet50", "IMAGENET1K_V2") == []
    assert notes("timm/convnextv2_tiny.fcmae", "none") == []
    assert notes("timm/convnextv2_tiny.fcmae") == [
        "the licence of the weights of timm/convnextv2_tiny.fcmae, cc-by-nc-4.0, forbids commercial use "
        "(https://huggingface.co/timm/convnextv2_tiny.fcmae)"
    ]
    assert "terms of its own" in notes("timm/convnext_tiny.dinov3_lvd1689m")[0]
    assert limits("") == limits("apache-2.0") == hub_page("resnet50") == ""
    assert licence_of("resnet50", "/my/net.pth") == licence_of("timm/nobody.knows", "pretrained") == ""


def test_frozen_code_has_the_tables(tmp_path):
    code = (
        "from pipeline.spec.timm_catalogue import catalogue, __file__ as place;"
        "from pipeline.spec.torchvision_catalogue import torchvision_weights;"
        "print('.zip' in place, len(catalogue()) > 2000, len(torchvision_weights()) > 80)"
    )
    frozen = {"PYTHONPATH": str(snapshot(tmp_path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=frozen
    )
    assert done.stdout.strip() == "True True True", done.stderr
    assert (ROOT / "pipeline" / "spec" / "timm_models.tsv").stat().st_size < 200_000
