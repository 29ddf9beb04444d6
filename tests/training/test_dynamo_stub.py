"""Training does without torch's compiler: it is not imported, not missed, and there for whoever asks for it."""

import inspect
import subprocess
import sys

import pytest

from pipeline.training.dynamo_stub import STANDS_IN_FOR
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


SIGNATURES = """
import inspect
from importlib import import_module
from pipeline.training.dynamo_stub import STANDS_IN_FOR
for module, functions in STANDS_IN_FOR.items():
    for function in functions:
        theirs = inspect.signature(getattr(import_module(module), function.__name__))
        ours = inspect.signature(function)
        both = ([(p.name, p.kind, p.default) for p in s.parameters.values()] for s in (ours, theirs))
        print("ok" if len(set(map(str, both))) == 1 else f"{function.__name__}: {ours} is not torch's {theirs}")
"""
# torch's documented ways to decorate, in a network of the user's own
DECORATED = """
from pipeline.training.dynamo_stub import install_dynamo_stub
install_dynamo_stub()
import sys, torch
class Net(torch.nn.Module):
    @torch.compiler.disable
    def a(self, x): return x + 1
    @torch.compiler.disable()
    def b(self, x): return self.a(x) + 1
    @torch.compiler.disable(recursive=False)
    def c(self, x): return self.b(x) + 1
    @torch._dynamo.disable(recursive=False, reason="measured")
    def forward(self, x):
        torch._dynamo.graph_break()
        return self.c(x) + 1
print(int(torch.compiler.disable(Net(), recursive=False)(torch.zeros(()))), "sympy" in sys.modules)
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


def test_the_stub_has_the_signatures_of_the_torch_installed():
    assert set(" ".join(python(SIGNATURES)).split()) == {"ok"}


@pytest.mark.parametrize(
    ("name", "published"),  # read in torch's published sources since 2.4, oldest first; not run
    [
        ("disable", "(fn=None, recursive=True)"),
        ("disable", "(fn=None, recursive=True, *, reason=None)"),
        ("disable", "(fn=None, recursive=True, *, reason=None, wrapping=True)"),
        ("graph_break", "()"),
        ("graph_break", "(msg='')"),
        ("is_compile_supported", "(device_type)"),
    ],
)
def test_the_stub_takes_every_call_that_a_published_torch_takes(name, published):
    functions = {function.__name__: function for each in STANDS_IN_FOR.values() for function in each}
    theirs = eval(f"lambda {published[1:-1]}: None")
    ours = inspect.signature(functions[name]).parameters
    for parameter in inspect.signature(theirs).parameters.values():
        assert ours[parameter.name].replace(annotation=parameter.empty) == parameter


def test_a_network_may_use_torch_s_decorators():
    assert python(DECORATED) == ["4", "False\n"]
