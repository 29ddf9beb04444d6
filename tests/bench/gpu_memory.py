"""Memory that runs out for real: the GPU is filled until a step does not fit, and the result compared."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu_right import tasks
from gpu_set import Bench, Check, Result, device, forget_everything, make_learner, train_whole, write_spec
from measure import table
from torch import Tensor

from jobs.stages import TrainGroupTask
from pipeline.data import pixel_cache
from pipeline.models.checkpoint import load_checkpoint
from pipeline.training import loop

_CALM_STEPS = 2  # before memory is taken: the optimizer's state is there, and what a step needs is known
_TOLERANCE = 1e-3  # of weights about 1: a convolution that finds less room may choose another algorithm
_NAMES = {
    "pixels": "resident pixels go, the step is tried again",
    "halves": "the batch goes through in halves",
    "group": "the last of two cells waits",
}


class Shortage:
    """Takes the GPU's memory, more at each step, until one does not fit; gives it back once that step was done.

    Without a GPU it pretends, by `pretended(learner, images, tries)`.
    """

    def __init__(self, pretended: Callable[[Any, int, int], bool], at_a_time: int = 0) -> None:
        self.pretended, self.at_a_time = pretended, at_a_time  # bytes; 0: an eighth of what a step needs
        self.tries = self.step = self.need = self.leave = 0
        self.over = False
        self._ballast: list[Tensor] = []
        self._backward = loop.backward

    def backward(self, one: Any, inputs: Tensor, targets: Tensor) -> Tensor | None:
        if device() == "cpu":
            short = (
                not self.over and one.step >= _CALM_STEPS and self.pretended(one, len(targets), self.tries)
            )
            loss = None if short else self._backward(one, inputs, targets)
        else:
            if not self.tries and one.step >= 1:
                self._tighten(one)
            loss = self._backward(one, inputs, targets)
        if loss is None:
            self.tries, self.step = self.tries + 1, one.step
        elif self.tries:
            self.over = True
            self._ballast.clear()
        return loss

    def _tighten(self, one: Any) -> None:
        """Leave what a step needs, and less at each step."""
        if one.step < _CALM_STEPS:
            torch.cuda.reset_peak_memory_stats()
            self._at_rest = torch.cuda.memory_allocated()
            return
        if not self.need:
            self.need = torch.cuda.max_memory_allocated() - self._at_rest
            self.at_a_time = self.at_a_time or self.need // 8
            self.leave = self.need + self.at_a_time
        self.leave = max(0, self.leave - self.at_a_time)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        if (take := torch.cuda.mem_get_info()[0] - self.leave) > 0:
            with contextlib.suppress(
                torch.OutOfMemoryError
            ):  # a neighbour was faster: so much the less is left
                self._ballast.append(torch.empty(take, dtype=torch.uint8, device="cuda"))


def _short_of_pixels(one: Any, images: int, tries: int) -> bool:
    return tries == 0


def _short_of_activations(one: Any, images: int, tries: int) -> bool:
    return (one.execution.micro_batch or images) > -(-images // 2)


def _short_beside(one: Any, images: int, tries: int) -> bool:
    return tries < 2


def memory(bench: Bench) -> Result:
    """Each way a step finds room, against the same training undisturbed."""
    result, rows = Result(), []
    for name, ours in (("pixels", _pixels), ("halves", _halves), ("group", _group)):
        forget_everything()
        with pytest.MonkeyPatch.context() as patch:
            if name != "pixels":
                patch.setattr(pixel_cache, "fits_on_gpu", lambda size: False)
            shortage, off, problems = ours(bench)
        equal = "bit for bit" if off == 0 else f"within {off:.1e}"
        if not shortage.tries:
            problems.append("memory never ran out")
        if off > _TOLERANCE:
            problems.append(f"weights are off by {off:.1e}")
        result.checks.append(
            Check(f"out of memory: {_NAMES[name]}", not problems, "; ".join(problems) or equal)
        )
        sizes = [
            f"{size / 2**30:.2f} GiB" if size else "pretended" for size in (shortage.need, shortage.leave)
        ]
        rows.append([_NAMES[name], f"{shortage.step + 1}", *sizes, f"{shortage.tries}", equal])
    head = [
        "what is given up",
        "at step",
        "a step takes",
        "was left",
        "tries without room",
        "weights as undisturbed",
    ]
    result.tables["Out of GPU memory, run.deterministic, fp32"] = table(head, rows)
    return result


def _learner(bench: Bench, name: str) -> Any:
    settings = {
        "model": {"name": bench.norm_network}, "precision": "fp32", "epochs": 1,
        "batch_size": bench.scale.of(32, 8), "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    }  # fmt: skip
    return make_learner(write_spec(bench, name, settings, small=True), "run.deterministic=true")


@contextlib.contextmanager
def _listening(shortage: Shortage) -> Iterator[io.StringIO]:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(loop, "backward", shortage.backward)
        yield said


def _pixels(bench: Bench) -> tuple[Shortage, float, list[str]]:
    expected = _learner(bench, "pixels")
    train_whole([expected])
    one, shortage = _learner(bench, "pixels"), Shortage(_short_of_pixels)
    with _listening(shortage) as said:
        train_whole([one])
    problems = _missing(said.getvalue(), f"out of GPU memory at step {shortage.step + 1}: trying once more")
    if device() == "cuda":
        problems += _missing(said.getvalue(), "pixels are read from the disk from now on")
    if one.execution.micro_batch:
        problems.append("the batch was halved")
    return shortage, _distance(expected.net.state_dict(), one.net.state_dict()), problems


def _halves(bench: Bench) -> tuple[Shortage, float, list[str]]:
    one, shortage = _learner(bench, "halves"), Shortage(_short_of_activations)
    with _listening(shortage) as said:
        train_whole([one])
    problems = _missing(said.getvalue(), "trying once more", "images at a time from now on")
    # the same parts from the same step on, without a shortage
    expected, backward, parts = _learner(bench, "halves"), loop.backward, one.execution.micro_batch

    def in_parts(each: Any, inputs: Tensor, targets: Tensor) -> Tensor | None:
        if each.step >= shortage.step:
            each.execution = replace(each.execution, micro_batch=parts)
        return backward(each, inputs, targets)

    forget_everything()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "backward", in_parts)
        train_whole([expected])
    return shortage, _distance(expected.net.state_dict(), one.net.state_dict()), problems


def _group(bench: Bench) -> tuple[Shortage, float, list[str]]:
    settings = {
        "model": {"name": bench.norm_network}, "precision": "fp32", "epochs": 1,
        "batch_size": bench.scale.of(16, 8),
    }  # fmt: skip
    one, other = (f"{{name: sgd, momentum: 0.9, lr: {lr}}}" for lr in (0.01, 0.02))
    cells = f"grid: {{axes: {{train.optimizer: [{one}, {other}]}}}}\n"
    # a cell that waits gives its weights and their momentum back, 170 MB: less is taken at a time
    shortage, found, logs = Shortage(_short_beside, at_a_time=40 << 20), [], ""
    for name, short in (("group-expected", None), ("group", shortage)):
        forget_everything()
        path = write_spec(bench, name, settings, small=True, more=f"{cells}run: {{deterministic: true}}")
        several = tasks(bench, path)
        with _listening(short) if short else contextlib.nullcontext():
            assert TrainGroupTask(tuple(several))() == 0
        found.append([load_checkpoint(task.run.checkpoint_last)["model"] for task in several])
        logs = "".join(task.run.log.read_text() for task in several)
    problems = _missing(logs, "out of GPU memory beside the other cells of this process: waits at step")
    return shortage, max(_distance(a, b) for a, b in zip(*found, strict=True)), problems


def _missing(said: str, *wanted: str) -> list[str]:
    return [f"not said: {text!r}" for text in wanted if text not in said]


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of a weight, of the larger of 1 and itself; counts of batches must be equal."""
    worst = 0.0
    for name, value in one.items():
        a, b = value.double().cpu(), other[name].double().cpu()
        worst = max(worst, float(((a - b).abs() / a.abs().clamp(min=1)).max()))
    return worst
