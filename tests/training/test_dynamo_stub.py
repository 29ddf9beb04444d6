"""Training does without torch's compiler: it is not imported, not missed, and there for whoever asks for it."""

import subprocess
import sys

import pytest

from tests.cells import clean_environment, jobs, project

pytestmark = pytest.mark.slow

# what torch._dynamo brings with it
BROUGHT = ("torch._dynamo.eval_frame", "torch._inductor", "sympy")
STEPS = """
import hashlib, sys
if sys.argv[1] == "without":
    from pipeline.training.dynamo_stub import install_dynamo_stub
    install_dynamo_stub()
import torch
from torchvision.models import mobilenet_v3_small
from pipeline.training.optim import _OPTIMIZERS, build_optimizer
from pydantic import TypeAdapter
from pipeline.spec import OptimizerSpec
sha = hashlib.sha256()
for name in _OPTIMIZERS:
    torch.manual_seed(0)
    net = mobilenet_v3_small(num_classes=3)
    optimizer = build_optimizer(TypeAdapter(OptimizerSpec).validate_python({"name": name, "lr": 0.01}), net)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    for value in net.state_dict().values():
        sha.update(value.numpy().tobytes())
print(sha.hexdigest(), "sympy" in sys.modules)
"""
ASKED = """
from pipeline.training.dynamo_stub import install_dynamo_stub
install_dynamo_stub()
import inspect, sys, torch
optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
optimizer.step()
inspect.getmodule(torch)  # looks through all modules
assert "sympy" not in sys.modules
{how}
assert torch._dynamo.utils.counters is not None and torch._dynamo.config.recompile_limit
compiled = torch.compile(lambda x: 2 * x + 1, backend="eager")
optimizer.step()
print(compiled(torch.ones(2)).tolist(), torch._dynamo.utils.counters["frames"]["ok"])
"""


def python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(maxsplit=1)


@pytest.mark.parametrize("model", ["cnn3", "mobilenet_v3_small"])
def test_no_stage_of_a_grid_imports_the_compiler(tmp_path, drawn_zip, model):
    spec = project(tmp_path, drawn_zip, model={"name": model})
    status, printed = jobs("submission", spec, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert status == 0, printed
    (log,) = (tmp_path / "experiments" / "x").glob("*/log.txt")
    logs = [log, *(tmp_path / "experiments" / "x" / "logs").iterdir()]
    imported = {line.split("|")[-1].strip() for path in logs for line in path.read_text().splitlines()}
    assert "torch.optim.adam" in imported
    assert ("torchvision.models" in imported) == (model != "cnn3")
    assert not {name for name in imported if name.startswith(BROUGHT)}


def test_every_optimizer_does_the_same_without_it():
    there, loaded = python(STEPS, "with")
    assert loaded.strip() == "True"
    assert python(STEPS, "without") == [there, "False\n"]


@pytest.mark.parametrize(
    "how", ["", "import torch._dynamo.config", "from torch._dynamo import optimize", "torch._dynamo.reset()"]
)
def test_whoever_asks_for_more_gets_the_real_one(how):
    values, frames = " ".join(python(ASKED.format(how=how))).rsplit(" ", 1)
    assert values == "[3.0, 3.0]"
    assert int(frames) == 1
