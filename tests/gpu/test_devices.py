"""Cells between devices, and devices that fail: what goes on elsewhere, what is refused, whose fault it is."""

import dataclasses
import re
import signal

import pytest
import torch

from jobs.local.endings import Mark, cell_ending
from jobs.local.processes import Job, Outcome, run_jobs
from jobs.local.progress import Progress
from jobs.local.slots import Slots
from jobs.slurm.job import CellJob
from jobs.stages import EXIT_DEVICE_FAILED, TrainGroupTask
from pipeline.errors import DivergedError, TrainingError
from pipeline.evaluation.prediction import load_scorer
from pipeline.models import device
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.device import ExecutionConfig
from pipeline.predictor import Predictor
from pipeline.spec import ModelSpec
from pipeline.storage.run_dir import RunDir
from pipeline.training import learner as learner_module
from pipeline.training import loop
from pipeline.training.attempt import MOST_FAULTS, is_device_fault
from pipeline.training.loop import train
from pipeline.training.stop_signal import StopFlag
from tests.cells import jobs, one_cell, packed_project, run_here
from tests.local import test_train_groups as groups
from tests.local.test_train_groups import SHARED, assert_equal, planned, results

alone = groups.alone  # a fixture


# ---------------------------------------------------------------- scored anywhere


def checkpoint(precision):
    model = ModelSpec(name="cnn2")
    net = build_model(model, 3, 32)
    return {
        "precision": precision, "model_spec": model.model_dump(), "labels": ["a", "b", "c"], "model": net.state_dict(),
        "preprocessing": {
            "image_px": 32, "packed_px": 32, "resize": "squash", "flips": False, "mean": [0.5] * 3, "std": [0.2] * 3,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("trained", "flags", "scored"),
    [
        ("fp16", {"avx512_bf16"}, "fp32"),
        ("bf16", {"avx2"}, "fp32"),
        ("bf16", {"avx512_bf16"}, "bf16"),
        ("fp32", (), "fp32"),
    ],
)
def test_a_checkpoint_is_scored_in_what_the_cpu_has(monkeypatch, capsys, trained, flags, scored):
    device._say_once.cache_clear()
    monkeypatch.setattr(device, "_cpu_flags", lambda: set(flags))
    for where in ("auto", "cpu"):
        scorer = load_scorer(checkpoint(trained), where)
        assert scorer.execution.precision == scored
        assert scorer.logits(torch.zeros(2, 3, 32, 32)).dtype == torch.float32
    said = f"trained in {trained}, which this CPU lacks: scored in fp32"
    assert capsys.readouterr().out.count(said) == (trained != scored)


@pytest.mark.parametrize(
    ("trained", "capability", "scored"),
    [("bf16", (7, 0), "fp32"), ("bf16", (9, 0), "bf16"), ("fp16", (7, 0), "fp16"), ("fp32", (7, 0), "fp32")],
)
def test_and_in_what_the_gpu_has(monkeypatch, trained, capability, scored):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert ExecutionConfig.for_scoring("auto", trained).precision == scored


@pytest.mark.slow
def test_a_cell_of_a_v100_predicts_here(tmp_path, drawn_zip, monkeypatch):
    """As one that was trained in fp16: only its checkpoint says so."""
    spec = packed_project(tmp_path, drawn_zip, epochs=1, precision="fp32", model={"name": "cnn2"})
    describe = learner_module.Learner._description
    monkeypatch.setattr(
        learner_module.Learner, "_description", lambda self: describe(self) | {"precision": "fp16"}
    )
    cell = one_cell(spec, "run.threads=1")
    from tests.cells import train as train_here

    assert train_here(cell) == 0
    assert load_checkpoint(cell.run.checkpoint_best)["precision"] == "fp16"
    status, printed = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, printed
    assert (tmp_path / "experiments" / "x" / "submission.csv").exists()
    predictor = Predictor.load(tmp_path / "experiments" / "x")
    assert [scorer.execution.precision for scorer in predictor.scorers] == ["fp32"]


# ---------------------------------------------------------------- begun on a CPU


def test_a_cell_begun_on_a_cpu_is_not_gone_on_with_beside_a_gpu(learner, monkeypatch):
    one = learner()
    one.save()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(TrainingError) as refused:
        learner()
    assert "was begun on a CPU (step 0), and here is a GPU" in str(refused.value)
    assert f"set run.device=cpu, to begin anew on the GPU delete {one.run.path}" in str(refused.value)
    assert learner("run.device=cpu").execution.device == "cpu"


def test_a_cell_keeps_how_it_was_begun(learner):
    one = learner("run.deterministic=true")
    one.execution = dataclasses.replace(one.execution, micro_batch=4)
    one.save()
    again = learner("run.compile=true")  # how a network is run is part of its bits
    assert again.execution.compiled is False
    assert again.execution.deterministic is True
    assert again.execution.micro_batch == 4  # else other parts of a batch would be summed up


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_cuda_without_a_gpu_is_told_in_words(precision):
    told = r"this cell runs on a GPU, and torch .* sees none here; set run.device=cpu"
    with pytest.raises(TrainingError, match=told):
        ExecutionConfig.choose("cuda", precision, 1)
    with pytest.raises(TrainingError, match=told):
        ExecutionConfig.for_scoring("cuda", "bf16")


def test_pictures_are_not_made_in_tf32_whatever_a_container_sets(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    ExecutionConfig.choose("cpu", "fp32", 1).apply()
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_only_on_request_cudnn_is_held_to_one_algorithm(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: asked.append((a, k)))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    try:
        for wanted in (False, True):
            ExecutionConfig.choose("cuda", "bf16", 1, deterministic=wanted).apply()
            assert (cudnn.benchmark, cudnn.deterministic) == (not wanted, wanted)
            assert asked == [((True,), {"warn_only": True})] * wanted
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before


# ---------------------------------------------------------------- a GPU that fails


class AcceleratorError(RuntimeError):
    """As torch raises it, which cannot be made to without a GPU."""


FAULT = AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ...")


@pytest.mark.parametrize(
    ("error", "is_fault"),
    [
        (FAULT, True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("HIP error: unspecified launch failure"), True),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error: not torch's"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("CUDA error: invalid configuration argument"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
    ],
)
def test_faults_of_the_gpu_are_known(error, is_fault):
    assert is_device_fault(error) is is_fault


def faulty(monkeypatch, at):
    back = loop.backward

    def backward(one, *batch):
        if one.step == at and one.train.model.name == "cnn3":
            raise FAULT
        return back(one, *batch)

    monkeypatch.setattr(loop, "backward", backward)
    return back


@pytest.mark.slow
@SHARED
def test_a_gpu_that_fails_is_no_cells_fault(tmp_path, drawn_zip, alone, monkeypatch, capsys):
    plan, tasks = planned(tmp_path, drawn_zip)
    task, back = TrainGroupTask(tuple(tasks)), faulty(monkeypatch, at=14)
    for attempt in (1, 2):
        marks = [Mark.of(cell.run.log) for cell in plan.cells]
        assert run_here(task) == EXIT_DEVICE_FAILED
        assert {cell.run.manifest_state(cell.identity) for cell in plan.cells} == {"started"}
        for cell, mark in zip(plan.cells, marks, strict=True):
            said = "error: the GPU failed (CUDA error: uncorrectable ECC error encountered)"
            assert said in cell.run.log.read_text()
            assert f"(attempt {attempt} of {MOST_FAULTS})" in cell.run.log.read_text()
            status, words = cell_ending(
                cell.run, cell.identity, EXIT_DEVICE_FAILED, mark=mark, reason="it ended", stopped=False
            )
            assert status == EXIT_DEVICE_FAILED
            assert words == "the GPU failed, not the cell; resumes at epoch 2 with the same command"
    monkeypatch.setattr(loop, "backward", back)
    assert run_here(task) == 0
    assert_equal(results(plan), alone)


@pytest.mark.slow
def test_a_cell_that_the_gpu_fails_under_every_time_is_failed_at_last(tmp_path, drawn_zip, monkeypatch):
    _, tasks = planned(tmp_path, drawn_zip)
    faulty(monkeypatch, at=0)
    task = next(task for task in tasks if task.spec.train.model.name == "cnn3")
    assert [run_here(task) for _ in range(MOST_FAULTS)] == [EXIT_DEVICE_FAILED] * MOST_FAULTS
    reason = task.run.why_not_done(task.identity)
    assert re.match(r"failed: the GPU failed under it 3 times, last: CUDA error: uncorrectable ECC", reason)


@pytest.mark.slow
def test_a_requeued_job_does_not_begin_again_what_its_gpus_failed_under(tmp_path, drawn_zip, monkeypatch):
    """Two cells out of phase would else keep each other alive for ever."""
    _, tasks = planned(tmp_path, drawn_zip)
    a = next(task for task in tasks if task.spec.train.model.name == "cnn3")
    faulty(monkeypatch, at=0)
    assert run_here(a) == EXIT_DEVICE_FAILED  # on an earlier day
    b = dataclasses.replace(a, run=RunDir(a.run.path.with_name("b-" + a.run.name)))
    ended = []
    for restart in range(6):
        if restart:
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        statuses = [run_here(task) for task in (a, b) if task.run.why_not_done(task.identity)]
        ended.append(EXIT_DEVICE_FAILED in statuses)
    assert ended == [True, True, True, False, False, False]
    assert "failed: the GPU failed under it 3 times" in a.run.why_not_done(a.identity)


def test_a_cell_that_has_come_further_is_not_stuck(learner):
    one = learner()
    for _ in range(5):
        one.save()
        one.attempt.device_failed(FAULT)
        assert one.run.faults(one.identity) == 1
        one.attempt.has_saved = False


def test_nothing_begins_on_a_gpu_that_has_failed(tmp_path, drawn_zip, monkeypatch, capsys):
    _, tasks = planned(tmp_path, drawn_zip)
    fails = tmp_path / "broken" / "torch"
    fails.mkdir(parents=True)
    (fails / "__init__.py").write_text(f"raise SystemExit({EXIT_DEVICE_FAILED})")
    monkeypatch.setenv("PYTHONPATH", str(fails.parent))
    queue = [Job(task.run.name, task, task.run.log) for task in tasks]
    outcome = run_jobs(queue, Slots(count=1, threads=1, gpus=("0",)), Progress("cells", 3))
    assert set(outcome.status.values()) == {EXIT_DEVICE_FAILED}
    first, *others = (outcome.words[job.name] for job in queue)
    assert first.startswith("the GPU failed, not the cell")
    assert others == ["not begun: the GPU failed under another cell"] * 2
    assert {task.run.manifest_state(task.identity) for task in tasks} == {"new"}
    assert f"FAIL 3/3 {queue[2].name}: not begun" in capsys.readouterr().out


def test_a_job_whose_gpu_fails_goes_back_into_the_queue(tmp_path, drawn_zip, monkeypatch):
    _, tasks = planned(tmp_path, drawn_zip)
    monkeypatch.setattr(CellJob, "_train", lambda self: Outcome({"a": EXIT_DEVICE_FAILED, "b": 0}))
    monkeypatch.setenv("LABELGRID_REQUEUE", str(tmp_path / "requeue"))
    monkeypatch.setattr("shutil.which", lambda name: None)  # else submitit's own way
    before = signal.getsignal(signal.SIGUSR2)
    try:
        with pytest.raises(SystemExit) as ended:
            CellJob(tuple(tasks), 1, 1, "cpu", (), requeue=True, grace_s=1)()
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    assert ended.value.code == 0
    assert (tmp_path / "requeue").exists()


# ---------------------------------------------------------------- fp16


def test_a_loss_scale_that_falls_for_ever_is_told(learner, monkeypatch):
    one = learner(epochs=9)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    steady = one.loss
    # finite, and without a finite gradient: as fp16 that overflows
    monkeypatch.setattr(
        one, "loss", lambda logits, targets: steady(logits, targets) + (logits * 0).abs().sqrt().sum()
    )
    train([one], StopFlag())
    assert isinstance(one.attempt.error, DivergedError)
    assert "the loss scale of fp16 fell to" in str(one.attempt.error)
    assert "train.precision to bf16 or fp32" in str(one.attempt.error)


def test_a_loss_scale_is_logged_and_a_step_without_it_is_not(learner):
    one = learner(epochs=3)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    train([one], StopFlag())
    assert one.attempt.is_done
    assert '"train/loss_scale": 16.0' in one.run.metrics.read_text()
