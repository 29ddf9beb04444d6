"""What a text tells to type works where it is read: `make` in a checkout, `labelgrid` anywhere else."""

import ast
import re
import shutil
from types import SimpleNamespace

import pytest

from jobs.commands.verbs import VERBS
from jobs.slurm.refusals import explain_refusal
from pipeline.predictor import Predictor
from pipeline.results import Experiment
from pipeline.storage.typed import option, typed
from tests.cells import jobs
from tests.conftest import ROOT

OF_MAKE = re.compile(rf"\bmake ({'|'.join(VERBS)})\b|\b(SPEC|SET|RUN|CLUSTER)=")
WAYS = {
    ("grid", "x.yaml"): ("make grid SPEC=x.yaml", "labelgrid grid x.yaml"),
    ("grid",): ("make grid", "labelgrid grid SPEC"),
    ("data", ""): ("make data", "labelgrid data"),
    ("retry", "my x.yaml"): ("make retry SPEC='my x.yaml' ", "labelgrid retry 'my x.yaml' "),
}
MORE = {
    "cluster": "roihu",
    "settings": ["train.epochs=2", "train.optimizer={name: sgd}"],
    "run": "sgd",
}


@pytest.mark.parametrize("checkout", [True, False])
def test_a_command_is_told_as_it_works_here(tmp_path, monkeypatch, checkout):
    monkeypatch.chdir(ROOT if checkout else tmp_path)
    for words, ways in WAYS.items():
        assert typed(*words) == ways[not checkout].strip()
    options = (
        ' CLUSTER=roihu SET="train.epochs=2 train.optimizer={name: sgd}" RUN=sgd'
        if checkout
        else " --cluster roihu --set train.epochs=2 'train.optimizer={name: sgd}' --run sgd"
    )
    assert typed("grid", "x.yaml", **MORE) == WAYS["grid", "x.yaml"][not checkout] + options
    assert option("cluster", "local") == ("CLUSTER=local" if checkout else "--cluster local")


@pytest.mark.parametrize("checkout", [True, False])
def test_a_refusal_of_slurm_names_the_setting_as_it_is_typed_here(tmp_path, monkeypatch, checkout):
    monkeypatch.chdir(ROOT if checkout else tmp_path)
    told = explain_refusal("sbatch: error: Invalid partition name", SimpleNamespace(key="train-1"), "mine")
    settings = "cluster.train.partition=... cluster.cpu.partition=..."
    assert told.endswith(
        f'name one that exists: SET="{settings}"' if checkout else f"exists: --set {settings}"
    )


@pytest.fixture(scope="module")
def told(finished, tmp_path_factory):
    """name -> what verbs print, and the pages they write, in a folder that is no checkout."""
    root = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(finished.parent.parent, root, dirs_exist_ok=True)
    spec, results = root / "experiments" / "x.yaml", root / "experiments" / "x"
    cell = Experiment(results).selected
    calls = {
        "of an earlier --set": ("evaluate", spec, "--set", "grid.seeds=[0]", "evaluate.threshold=0.4"),
        "plan": ("plan", spec, "--set", "train.epochs=3"),
        "status": ("status", spec),
        "submission": ("submission", spec),
        "report": ("report", spec),
        "retry without a cell": ("retry", spec),
        "cancel": ("cancel", spec),
        "select an unknown cell": ("select", spec, "--run", "nothing"),
        "a cluster's setting": ("plan", spec, "--set", "cluster.train.partition=x"),
        "retry": ("retry", spec, "--run", cell),
        "predict": ("predict", spec, "--run", cell),
    }
    for page in (results / "report.html", *results.glob("*/MODEL_CARD.md")):
        page.unlink()  # others that share the experiment may have written them in the checkout
    found = {name: jobs(*call, cwd=root)[1] for name, call in calls.items()}
    pages = {
        page.name: page.read_text() for page in (results / "report.html", *results.glob("*/MODEL_CARD.md"))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        found["Predictor"] = repr(Predictor.load(finished, device="cpu"))
    return found | pages


def test_outside_a_checkout_nothing_printed_or_written_names_make(told):
    found = {name: OF_MAKE.findall(text) for name, text in told.items()}
    assert {name: places for name, places in found.items() if places} == {}
    assert "this grid is experiments/x.yaml --set" in told["of an earlier --set"]
    assert "labelgrid grid experiments/x/" in told["report.html"]
    assert "ranked by experiments/x.yaml" in told["Predictor"]
    assert "`labelgrid retry experiments/x.yaml --run CELL`" in told["retry without a cell"]
    assert "`labelgrid grid experiments/x.yaml` trains it anew" in told["retry"]


def test_no_text_of_the_code_names_a_verb_of_make_by_itself():
    """`typed` says it; docstrings are for those who read the code in its checkout."""
    found = []
    for path in (*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")):
        tree = ast.parse(path.read_text())
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                words = rf"\bmake ({'|'.join(VERBS)})\b"
                found += [f"{path.name}:{node.lineno}: {m[0]}" for m in re.finditer(words, node.value)]
    assert found == []
