"""What `doctor` finds in code of the user's own by trying it: resumption, seeds, gradients, values."""

import re

import pytest

from pipeline.errors import TrainingError
from pipeline.own.source import OwnFiles
from pipeline.spec import TrainSpec
from pipeline.training.own_trial import try_own
from tests.cells import jobs, packed_project
from tests.own import lab


@pytest.fixture
def trial(tmp_path):
    """trial(key, **files that differ): what was found; raises what is wrong."""

    def found(key, **changed):
        lab.write(tmp_path, **changed)
        code = OwnFiles.read(tmp_path, ["mylab"]).freeze(tmp_path / "code")
        settings = {"model": lab.MODEL, "loss": lab.LOSS, "augment": lab.AUGMENT, "image_px": 32}
        return try_own(TrainSpec.model_validate(settings), key, 6, code)

    return found


FORWARD = "return self.head(self.body(images).mean(dim=(2, 3)))"


def forward(text, init="pass"):
    """The network with another forward, and perhaps more in its constructor."""
    nets = lab.NETS.replace(FORWARD, text).replace("self.head =", f"{init}\n        self.head =")
    return "import random\nimport numpy\n" + nets


def loss(text):
    return "import torch\nfrom torch.nn import functional\nCALLS = []\ndef bce(logits, targets):\n    " + text


def noise(text):
    return "import random\nimport torch\nCALLS = []\ndef noise(images, generator):\n    " + text


COUNTED = FORWARD.replace("return", "self.calls += self.training; return self.calls *")
WRONG = [
    (
        "train.model",
        {"nets": forward(FORWARD + " * random.random()")},
        "two runs of one seed differ: draw random",
    ),
    (
        "train.model",
        {"nets": forward(FORWARD + " + numpy.random.rand()")},
        "two runs of one seed differ: draw random",
    ),
    (
        "train.model",
        {"nets": forward(COUNTED, "self.calls = 0")},
        "continued from its saved state it goes on otherwise",
    ),
    (
        "train.model",
        {"nets": forward(FORWARD, "self.spare = nn.Linear(2, 2)")},
        "no gradient reaches spare.weight, spare.bias: use these parameters in forward, or remove them",
    ),
    (
        "train.model",
        {"nets": forward(FORWARD.replace("images)", "images - images.mean(0))"))},
        "depend on the other",
    ),
    ("train.model", {"nets": forward(FORWARD + " / 0")}, "logits of random pictures are not finite"),
    (
        "train.loss",
        {"losses": loss("return functional.mse_loss(logits.detach(), targets)")},
        "it has no gradient",
    ),
    (
        "train.loss",
        {"losses": loss("return torch.log(logits.sigmoid() * 0).mean()")},
        "it is -inf for usual logits",
    ),
    (
        "train.loss",
        {"losses": loss("return (logits - targets).square().sum()")},
        "it grows with the batch: return a",
    ),
    (
        "train.loss",
        {"losses": loss("CALLS.append(1); return (logits - targets).square().mean() * len(CALLS)")},
        "two calls with the same logits differ: a loss keeps no state",
    ),
    (
        "train.loss",
        {"losses": loss("return -torch.log(torch.where(targets > 0, logits, -logits).sigmoid()).mean()")},
        "is not finite at logits of 100: use torch's functions of logits",
    ),
    (
        "train.augment.own",
        {"changes": noise("return images + torch.rand(1)")},
        "two calls of one draw differ",
    ),
    (
        "train.augment.own",
        {"changes": noise("return images + random.random()")},
        "two calls of one draw differ",
    ),
    (
        "train.augment.own",
        {"changes": noise("CALLS.append(1); return images / len(CALLS)")},
        "and keep no state",
    ),
    ("train.augment.own", {"changes": noise("return images * 255")}, "[0.0"),
    ("train.augment.own", {"changes": noise("return images / 0 * 0")}, "pictures it returns are not finite"),
]


@pytest.mark.parametrize(("key", "changed", "said"), WRONG)
def test_a_trial_finds_what_would_be_wrong_after_hours(trial, key, changed, said):
    with pytest.raises(TrainingError, match=re.escape(said)):
        trial(key, **changed)


@pytest.mark.parametrize("key", ["train.model", "train.loss", "train.augment.own"])
def test_a_trial_of_what_is_right_says_what_it_saw(trial, key):
    assert "the same bits twice" in trial(key)


def test_state_in_a_buffer_and_numbers_of_torch_are_right(trial):
    buffered = COUNTED.replace("self.calls += self.training", "self.calls += float(self.training)")
    nets = forward(
        buffered.replace("images)", "nn.functional.dropout(images, training=self.training))"),
        "self.register_buffer('calls', torch.zeros(()))",
    )
    assert "the same bits twice and resumed" in trial("train.model", nets=nets)


@pytest.mark.slow
def test_each_function_is_tried_once_in_a_process_that_it_may_end(tmp_path, drawn_zip):
    grid = "grid: {axes: {train.model.options.width: [4, 8], train.seed: [0, 1]}}"
    spec = packed_project(tmp_path, drawn_zip, grid, model=lab.MODEL, loss=lab.LOSS, augment=lab.AUGMENT)
    lab.write(tmp_path, changes=noise("import os; os._exit(3)"))
    status, printed = jobs("doctor", spec, cwd=tmp_path)
    assert status == 1
    found = re.findall(r"^(\w+) +own code: (.*)", printed, re.M)
    assert [ok for ok, _ in found] == ["ok", "ok", "FAIL"]
    assert found[0][1].startswith("mylab.nets:build: 190 parameters, logits (4, 14) at 32 px")
    assert found[1][1].startswith("mylab.losses:bce: 0.")
    assert found[2][1] == "train.augment.own: its process ended without an answer: status 3"
