"""Cells of one grid that ran at different precisions, or on different devices: said by leaderboard and page."""

import json
import shutil

import pytest

from pipeline.evaluation.mixed_hardware import mixed_hardware
from pipeline.storage.files import read_json, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir
from tests.cells import jobs

V100, A100 = "Tesla V100-SXM2-32GB", "NVIDIA A100-SXM4-40GB"


@pytest.fixture(scope="module")
def trained(finished):
    """A cell's folder after a real training: its provenance is what the other tests start from."""
    return RunDir(next(path.parent for path in sorted(finished.glob("*/provenance.json"))))


def test_a_cell_names_what_it_was_trained_on(trained):
    facts = read_json(trained.provenance)
    assert facts["execution"]["device"] == "cpu"
    assert facts["hardware"]["name"]
    assert facts["packages"]["opencv"]


def test_several_processes_a_cell_are_said(runs):
    one, two = runs(*[("fp32", "fp32", None)] * 2)
    facts = read_json(two.provenance)
    facts["execution"]["ranks"] = 4
    write_json(two.provenance, facts)
    said = mixed_hardware([one, two])
    assert said.startswith(
        "cells were trained by several processes each: 1 (1 cell), 4 (1 cell); what networks draw"
    )


@pytest.fixture
def runs(trained, tmp_path):
    """A maker of cells from (precision that the spec asks for, precision, GPU; None: a CPU, "": not known)."""

    def make(*cells):
        made = []
        for i, (asked, precision, gpu) in enumerate(cells):
            run = RunDir(tmp_path / f"cell-{i}")
            run.path.mkdir()
            run.spec.write_text(trained.spec.read_text().replace("precision: fp32", f"precision: {asked}"))
            facts = read_json(trained.provenance)
            facts["execution"] |= {"precision": precision, "device": "cpu" if gpu is None else "cuda"}
            facts["hardware"] = facts["hardware"] if gpu is None else {"name": gpu, "driver": "535.104.05"}
            if gpu == "":
                del facts["hardware"]
            write_json(run.provenance, facts)
            made.append(run)
        return made

    return make


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([("auto", "bf16", A100)] * 3, ""),
        ([("auto", "fp32", None)] * 3, ""),
        (
            [("auto", "fp16", V100)] * 3 + [("auto", "bf16", A100)] * 4,
            f"cells were trained at different precisions: fp16 (3 cells, {V100}), bf16 (4 cells, {A100}); "
            "train.precision names one for all",
        ),
        (
            [("auto", "bf16", A100), ("auto", "fp32", None), ("auto", "bf16", "NVIDIA H100")],
            "cells were trained at different precisions: "
            f"bf16 (2 cells, {A100} and NVIDIA H100), fp32 (1 cell, CPU); train.precision names one for all",
        ),
        ([("bf16", "bf16", A100), ("fp32", "fp32", A100)], ""),  # as the spec asks
        (
            [("fp32", "fp32", V100), ("fp32", "fp32", A100), ("fp32", "fp32", A100)],
            f"cells were trained on different hardware: {V100} (1 cell), {A100} (2 cells); "
            "run.device, or gres and constraint in run.resources, name one for all",
        ),
        ([("auto", "bf16", A100), ("auto", "bf16", "")], ""),  # an older one, which does not name its GPU
        (
            [("fp32", "fp32", ""), ("fp32", "fp32", None)],
            "cells were trained on different hardware: GPU (1 cell), CPU (1 cell); "
            "run.device, or gres and constraint in run.resources, name one for all",
        ),
    ],
)
def test_what_differs_is_named_with_its_cells(runs, cells, said):
    assert mixed_hardware(runs(*cells)) == said


def test_a_cell_without_provenance_says_nothing(runs):
    first, second = runs(("auto", "fp16", V100), ("auto", "bf16", A100))
    write_json(second.provenance, {})
    assert mixed_hardware([first, second]) == ""
    second.provenance.unlink()
    assert mixed_hardware([first, second]) == ""


def test_leaderboard_and_page_say_it(finished, tmp_path):
    root = shutil.copytree(finished.parents[1], tmp_path / "project", symlinks=True)
    experiment = ExperimentDir(root / "experiments" / "x")
    first, *_ = (RunDir(path.parent) for path in sorted(experiment.path.glob("*/provenance.json")))
    facts = read_json(first.provenance)
    facts["execution"]["device"], facts["hardware"] = "cuda", {"name": A100}
    write_json(first.provenance, facts)
    identity = json.loads(first.manifest.read_text())["identity"]
    first.write_manifest(identity, "done")
    experiment.selected.unlink()
    status, printed = jobs("evaluate", root / "experiments" / "x.yaml", cwd=root)
    assert status == 0, printed
    assert "\nnote: cells were trained on different hardware: " in printed
    assert f"{A100} (1 cell)" in printed
    assert "CPU (3 cells)" in printed
    page = experiment.report.read_text()
    assert "Cells were trained on different hardware: " in page
    assert f"name {A100}" in page  # in the table of provenance
