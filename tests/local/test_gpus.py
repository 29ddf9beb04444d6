"""Which GPUs a process may use, on machines that are not "N plain NVIDIA GPUs", and what its own processes are told.

There is no GPU to ask here: the drivers' folders and nvidia-smi are played by files that answer as theirs do.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from jobs.local import gpus, slots, train_groups
from jobs.local.processes import Job, Process
from jobs.local.slots import Slots
from jobs.local.train_groups import plan_processes
from jobs.planning.plan import make_plan
from jobs.slurm.job import CellJob, CellsFailedError
from jobs.stages import TrainTask
from pipeline.errors import LaunchError
from pipeline.spec import RunSpec, Spec
from pipeline.spec.reading import read_spec
from pipeline.storage.run_dir import RunDir
from tests.cells import jobs, packed_project, project, train_task
from tests.conftest import ROOT

GPU = "GPU {}: NVIDIA H100 80GB HBM3 (UUID: GPU-{})\n"
MIG = "  MIG 1g.10gb     Device  {}: (UUID: MIG-{})\n"


class Machine:
    """The drivers of a machine, as files."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        for name, path in (("NVIDIA", "nvidia"), ("KFD", "nodes"), ("DEVICES", "dev")):
            monkeypatch.setattr(gpus, name, folder / path)
        (folder / "bin").mkdir()
        monkeypatch.setenv("PATH", str(folder / "bin"))

    def nvidia_smi(self, listed, status=0):
        tool = self.folder / "bin" / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '%s' '{listed}'\nexit {status}\n")
        tool.chmod(0o755)

    def nvidia(self, count, devices=None):
        for i in range(count):
            self.write(f"nvidia/0000:0{i}:00.0/information", f"Model: A100\nDevice Minor: \t {i}\n")
        for i in range(count if devices is None else devices):
            self.write(f"dev/nvidia{i}", "")

    def amd(self, simd_counts, seen=None):
        for i, count in enumerate(simd_counts):
            minor = 128 + i if count else 0
            self.write(
                f"nodes/{i}/properties", f"cpu_cores_count {0 if count else 56}\nsimd_count {count}\n"
                f"drm_render_minor {minor}\n"
            )  # fmt: skip
        for i in range(len(simd_counts)) if seen is None else seen:
            self.write(f"dev/dri/renderD{128 + i}", "")

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    for name in (gpus.CUDA, gpus.HIP, gpus.ROCR, *gpus._ALLOCATOR):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "machine"
    folder.mkdir()
    return Machine(folder, monkeypatch)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"CUDA": "0,1"}, ("0", "1")),
        ({"CUDA": " 2 , 3"}, ("2", "3")),
        ({"CUDA": "MIG-b1,MIG-b2"}, ("MIG-b1", "MIG-b2")),
        ({"CUDA": "GPU-8932f937-d72c,GPU-1"}, ("GPU-8932f937-d72c", "GPU-1")),
        ({"CUDA": "0,-1,1"}, ("0",)),  # CUDA stops at the -1
        ({"CUDA": "0,,1"}, ("0",)),
        ({"CUDA": "0,0"}, ()),
        ({"CUDA": ""}, ()),
        ({"CUDA": "-1"}, ()),
        ({"CUDA": "NoDevFiles"}, ()),  # older Slurm, none allotted
        ({"CUDA": "none"}, ()),
        ({"CUDA": "void"}, ()),  # NVIDIA's container runtime
        ({"HIP": "2,3"}, ("2", "3")),
        ({"ROCR": "4,5,6"}, ("0", "1", "2")),  # HIP counts within ROCR's list
        ({"ROCR": "GPU-ab,GPU-cd"}, ("0", "1")),
        ({"ROCR": "4,5", "HIP": "1"}, ("1",)),
        ({"ROCR": "4,5", "HIP": "1,2,0"}, ("1",)),  # there is no third
        ({"ROCR": "", "HIP": "0"}, ()),
        ({"ROCR": "0,1", "CUDA": "3"}, ("3",)),  # without a driver to be seen: Slurm sets ROCR anywhere
        ({"HIP": "0,1", "CUDA": "3"}, ("0", "1")),
    ],
)
def test_a_variable_names_the_gpus(machine, monkeypatch, variables, found):
    machine.nvidia_smi("".join(GPU.format(i, i) for i in range(8)))
    for name, value in variables.items():
        monkeypatch.setenv(f"{name}_VISIBLE_DEVICES", value)
    assert gpus.visible_gpus() == found


def test_without_a_variable_nvidia_smi_lists_them_and_mig_instances_stand_for_their_gpu(machine):
    machine.nvidia_smi(GPU.format(0, "a") + GPU.format(1, "b"))
    assert gpus.visible_gpus() == ("0", "1")
    machine.nvidia_smi(GPU.format(0, "a") + MIG.format(0, "b1") + MIG.format(1, "b2") + GPU.format(1, "c"))
    assert gpus.visible_gpus() == ("MIG-b1", "MIG-b2", "GPU-c")
    machine.nvidia_smi("No devices were found\n", status=6)
    assert gpus.visible_gpus() == ()


def test_without_nvidia_smi_the_driver_tells_and_a_container_counts_what_it_was_given(machine):
    machine.nvidia(4)
    assert gpus.visible_gpus() == ("0", "1", "2", "3")
    (machine.folder / "dev" / "nvidia3").unlink()
    assert gpus.visible_gpus() == ("0", "1", "2")


def test_amd_gpus_are_the_nodes_that_have_simd_units(machine, monkeypatch):
    machine.amd([0, 0, 440, 440])
    assert gpus.visible_gpus() == ("0", "1")
    (machine.folder / "dev" / "dri" / "renderD131").unlink()  # not in this container
    assert gpus.visible_gpus() == ("0",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # HIP obeys it
    assert gpus.visible_gpus() == ("1",)


def test_the_machine_says_whose_gpus_they_are_where_slurm_sets_every_variable(machine, monkeypatch):
    for name in (gpus.CUDA, gpus.ROCR):
        monkeypatch.setenv(name, "4,5")
    machine.nvidia(2)
    assert gpus.visible_gpus() == ("4", "5")
    assert not gpus.is_amd()
    (machine.folder / "nvidia").rename(machine.folder / "gone")
    machine.amd([0, 440, 440])
    assert gpus.visible_gpus() == ("0", "1")  # of the two that ROCR leaves
    assert gpus.is_amd()


def environment_of(gpu, slots_, tmp_path):
    """What a process is given, in its own words: the `python` that is started prints it."""
    printer = tmp_path / "printer"
    printer.write_text(f"#!{sys.executable}\nimport json, os\nprint(json.dumps(dict(os.environ)))\n")
    printer.chmod(0o755)
    run = RunDir(tmp_path / "cell")
    path = Path("p")
    task = TrainTask(run, Spec.model_validate({"name": "x", "data": {"source": "d"}}), "i", path, path, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(printer))
        run.log.unlink(missing_ok=True)
        process = Process(Job("cell", task, run.log), gpu, slots_, ROOT)
        process.process.wait()
        process.close()
    return json.loads(run.log.read_text())


def test_each_process_is_told_its_gpu_by_the_variable_that_is_obeyed(machine, monkeypatch, tmp_path):
    eight = Slots(count=12, threads=1, gpus=tuple("01234567"))
    given = environment_of("3", eight, tmp_path)
    assert (given[gpus.CUDA], given.get(gpus.HIP)) == ("3", None)
    assert (given[gpus.PER_GPU], environment_of("4", eight, tmp_path)[gpus.PER_GPU]) == ("2", "1")
    assert given["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    for name, value in {gpus.ROCR: "0,1", gpus.HIP: "0,1", gpus.CUDA: "0,1"}.items():
        monkeypatch.setenv(name, value)
    given = environment_of("1", eight, tmp_path)  # what the list named is not left beside it
    assert (given[gpus.HIP], given[gpus.ROCR], given.get(gpus.CUDA)) == ("1", "0,1", None)
    assert "PYTORCH_CUDA_ALLOC_CONF" not in given
    assert gpus.PER_GPU not in environment_of(None, Slots(count=1, threads=1), tmp_path)


@pytest.mark.parametrize("name", gpus._ALLOCATOR)
def test_the_user_s_own_allocator_settings_win(machine, monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, "max_split_size_mb:512")
    given = environment_of("0", Slots(count=1, threads=1, gpus=("0",)), tmp_path)
    assert {key: given[key] for key in gpus._ALLOCATOR if key in given} == {name: "max_split_size_mb:512"}


def test_a_node_of_eight_gcds_runs_eight_processes_each_on_its_own(machine, monkeypatch):
    for module in (slots, train_groups):
        monkeypatch.setattr(module, "cores", lambda: 56)
    for name in (gpus.HIP, gpus.ROCR):
        monkeypatch.setenv(name, "0,1,2,3,4,5,6,7")
    spec, path = Spec.model_validate({"name": "x", "data": {"source": "d.zip"}}), Path("p")
    tasks = [TrainTask(RunDir(Path(f"r{i}")), spec, str(i), path, path, path) for i in range(60)]
    _, found = plan_processes(tasks, RunSpec(device="cuda"), "auto")
    assert (found.count, found.threads, found.places) == (8, 7, list("01234567"))


def test_cuda_without_a_gpu_is_an_error_that_names_what_was_looked_at(machine, monkeypatch):
    with pytest.raises(
        LaunchError, match=r"run\.device: cuda .* are not set, `nvidia-smi -L` lists none.*auto"
    ):
        Slots.for_cells(60, None, None, "cuda")
    monkeypatch.setenv(gpus.CUDA, "NoDevFiles")
    with pytest.raises(LaunchError, match="CUDA_VISIBLE_DEVICES='NoDevFiles' names none"):
        Slots.for_cells(60, None, None, "cuda")
    assert Slots.for_cells(60, None, None, "auto").gpus == ()


def test_grid_refuses_cuda_without_a_gpu_before_anything_runs(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip, "run: {device: cuda}")
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 2
    assert "run.device: cuda needs a GPU, and none is found: CUDA_VISIBLE_DEVICES='' names none" in printed
    assert not (tmp_path / "data" / "packed").exists()
    status, printed = jobs("wrangle", spec, cwd=tmp_path)  # which needs none
    assert status == 0, printed


def test_in_a_job_the_cells_fail_with_that_reason(tmp_path, drawn_zip, monkeypatch):
    monkeypatch.setenv(gpus.CUDA, "")
    plan = make_plan(read_spec(packed_project(tmp_path, drawn_zip, "grid: {seeds: [1, 2]}")))
    first, second = plan.cells
    first.run.path.mkdir(parents=True)
    first.run.write_manifest(first.identity, "diverged", error="loss is nan")
    job = CellJob(tuple(map(train_task, plan.cells)), 2, 2, "cuda", (), requeue=False, grace_s=1.0)
    with pytest.raises(CellsFailedError, match="needs a GPU"):
        job()
    assert second.run.why_not_done(second.identity).startswith("failed: run.device: cuda needs a GPU")
    assert first.run.why_not_done(first.identity) == "diverged: loss is nan"
    assert not os.environ[gpus.CUDA]
