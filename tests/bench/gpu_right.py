"""What must be right on a GPU: pictures, scores elsewhere, and what becomes of a step that finds no memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gpu_set import (
    Bench,
    Check,
    Result,
    device,
    forget_everything,
    make_learner,
    planned,
    train_whole,
    write_spec,
)
from measure import table
from torch import Tensor, nn

from pipeline.data import warping
from pipeline.data.loading import Stream
from pipeline.errors import TrainingError
from pipeline.evaluation.prediction import load_scorer
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.device import ExecutionConfig
from pipeline.models.features import FrozenNetwork
from pipeline.models.scoring import Scorer, compute_logits, compute_scores
from pipeline.spec import IMAGENET, AugmentSpec, ModelSpec, TrainSpec
from pipeline.training.feeds import PixelFeed

_LIMIT = 0.02  # of 255: between the pictures that a CPU and a GPU make of the same draws
_ROUNDED = (
    1e-3  # the share of values that may be rounded to the neighbour, where colours become whole numbers again
)
_CLOSE = 0.02  # between scores in half precision and in fp32
_AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "flips": {"hflip": 0.5, "vflip": 0.5},
    "crop": {"crop": (0.08, 1)},
    "rotation": {"rotate_deg": 25},
    "crop, rotation": {"hflip": 0.5, "crop": (0.35, 1), "rotate_deg": 25},
    "crop, colour": {"crop": (0.35, 1), "trivial_augment": True, "brightness": 0.3},
}


def right(bench: Bench) -> Result:
    """The same draws on both devices; scores of half precision on a CPU; a cell of a CPU beside a GPU."""
    result = Result()
    _pictures(bench, result)
    _scores(bench, result)
    _refusal(bench, result)
    return result


# ---------------------------------------------------------------- pictures


class _Recorder(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.float().cpu())
        return inputs.float().mean(dim=(2, 3))


def _pictures(bench: Bench, result: Result) -> None:
    found = {where: list(_made(bench, where)) for where in ("cpu", "gpu")}
    rows = []
    for (path, name, on_cpu), (_, _, on_gpu) in zip(found["cpu"], found["gpu"], strict=True):
        std = torch.tensor(IMAGENET.std).view(1, 3, 1, 1)
        off = ((on_cpu - on_gpu) * std * 255).abs()
        most, share = float(off.max()), float((off > _LIMIT).float().mean())
        rows.append([path, name, f"{most:.4f}", f"{share:.2%}"])
        holds = share <= _ROUNDED if "colour" in name else most <= _LIMIT
        said = f"at most {most:.4f} of 255, {share:.2%} of the values beyond {_LIMIT}"
        result.checks.append(Check(f"the same pictures ({path}: {name})", holds, said))
    head = ["where", "draws", "largest difference, of 255", f"values beyond {_LIMIT}"]
    gpu = "GPU" if device() == "cuda" else "CPU by the GPU's functions (no GPU here)"
    result.tables[f"Pictures of the CPU against those of the {gpu}, under bf16 autocast"] = table(head, rows)


def _made(bench: Bench, where: str) -> Iterator[tuple[str, str, Tensor]]:
    """(path, augmentation, network inputs) of the training, feature and scoring paths, on one device."""
    forget_everything()
    there = device() if where == "gpu" else "cpu"
    one = make_learner(
        write_spec(bench, "pictures", {"precision": "fp32"}, small=True, size_px=bench.larger_px)
    )
    packed, rows = one.data.packed, one.data.train[: bench.scale.of(128, 24)]
    one.tracker.close()
    autocast = torch.autocast(there, dtype=torch.bfloat16, enabled=where == "gpu")
    execution = ExecutionConfig(there, "bf16" if where == "gpu" else "fp32", torch.get_num_threads())
    execution.apply()  # with TF32 as in training
    model = ModelSpec(name="resnet18", weights="drawn.pth", trainable="head")
    net = build_model(model, len(packed.labels), bench.px)
    with pytest.MonkeyPatch.context() as patch:
        if there == "cpu" and where == "gpu":
            patch.setattr(warping, "_warp_on_cpu", warping._warp_by_torch)
        for i, (name, augment) in enumerate(_AUGMENTATIONS.items()):
            train = TrainSpec(
                model=model,
                image_px=bench.px,
                augment=AugmentSpec(**augment),
                cached_views=1,
                precision="fp32",
            )
            feed = PixelFeed(train, Stream(packed, rows, 32, 0), rows, there)
            with autocast:
                trained = torch.cat([inputs.float().cpu() for inputs, _ in feed.batches(0, 0)])
            yield "training", name, trained
            frozen = FrozenNetwork(net, train, packed, execution, folder=bench.root / f"recorded-{where}-{i}")
            frozen._net = recorder = _Recorder()
            frozen.augmented(rows, 0)
            yield "features", name, torch.cat(recorder.seen)
        for px in (bench.px, bench.larger_px):
            compute_logits([Scorer(recorder := _Recorder(), px, execution, IMAGENET)], packed, rows)
            yield "scoring", f"to {px} px", torch.cat(recorder.seen)


# ---------------------------------------------------------------- scores


def _scores(bench: Bench, result: Result) -> None:
    rows = []
    for precision in ("fp32", "bf16", "fp16"):
        forget_everything()
        trained_in = precision if device() == "cuda" else "fp32"  # a CPU may emulate bf16, and has no fp16
        settings = {"epochs": 1, "batch_size": 32, "precision": trained_in}
        one = make_learner(write_spec(bench, f"scores-{precision}", settings, small=True))
        train_whole([one])
        best = load_checkpoint(one.run.checkpoint_best) | {"precision": precision}
        images, scores, said = one.data.validation, {}, io.StringIO()
        with contextlib.redirect_stdout(said):
            for where in (device(), "cpu"):
                scorer = load_scorer(best, where)
                (scored,) = compute_scores([scorer], one.data.packed, images)
                scores[where] = scored.scores_NK, scorer.execution.precision
        (there, in_there), (here, in_here) = scores[device()], scores["cpu"]
        off = np.abs(there - here)
        rows.append([precision, in_there, in_here, f"{off.max():.4f}", f"{off.mean():.5f}"])
        told = in_here == precision or "scored in fp32" in said.getvalue()
        name = f"a cell of {precision} is scored on the CPU"
        result.checks.append(
            Check(name, bool(told and off.max() <= _CLOSE), f"in {in_here}, off by {off.max():.4f}")
        )
    head = ["trained in", "scored on the GPU in", "on the CPU in", "largest difference of a score", "mean"]
    if device() == "cpu":
        head[1] = "scored (no GPU here) in"
    result.tables["Scores of one checkpoint on both devices"] = table(head, rows)


def _refusal(bench: Bench, result: Result) -> None:
    title = "A cell that was begun on a CPU"
    if device() == "cpu":
        result.tables[title] = "Left out: no GPU."
        return
    path = write_spec(bench, "begun", {"precision": "fp32", "batch_size": 16}, small=True)
    one = make_learner(path, "run.device=cpu")
    one.save()
    one.tracker.close()
    said = "it went on on the GPU"
    try:
        make_learner(path, again=one.run.path).tracker.close()
    except TrainingError as error:
        said = str(error)
    result.checks.append(
        Check("a cell begun on a CPU is refused beside a GPU", "begun on a CPU" in said, said[:80])
    )
    result.tables[title] = f"Beside the GPU: {said.partition(':')[0]}"


# ---------------------------------------------------------------- the group's tasks


def tasks(bench: Bench, path: Any) -> list[Any]:
    """What trains the cells of a spec."""
    from jobs.stages import TrainTask

    found = []
    for cell in planned(path):
        cell.run.path.mkdir(parents=True, exist_ok=True)
        data = cell.data.packed, cell.data.split_file
        found.append(TrainTask(cell.run, cell.cell.spec, cell.identity, *data, bench.root / "weights"))
    return found
