"""In a process of its own: images/s of the training loop with its data path, and of the step alone. JSON line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from pipeline.data.packed import PackedSet
from pipeline.data.splits import read_split
from pipeline.models.scoring import compute_scores
from pipeline.spec import Spec
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import RunDir
from pipeline.training.attempt import Attempt
from pipeline.training.feeds import build_feed
from pipeline.training.learner import CellData, Learner
from pipeline.training.loop import train
from pipeline.training.stop_signal import StopFlag


def main() -> None:
    settings, packed, split, folder, rounds = json.loads(sys.stdin.read())
    spec = Spec.model_validate_json(json.dumps(settings))
    rows = read_split(Path(split))
    data = CellData(PackedSet.open(Path(packed)), rows.train, rows.validation)
    result: dict[str, list[float]] = {"loop": [], "bare": [], "validation": []}
    for i in range(rounds + 1):  # the first only warms up
        run = RunDir(Path(folder) / f"run-{i}")
        run.path.mkdir(parents=True)
        attempt = Attempt(run, "bench")
        learner = Learner(spec, attempt, data, weights=None)
        train([learner], StopFlag())
        if attempt.error:
            raise attempt.error
        row = next(row for row in read_jsonl(run.metrics) if "validation/loss" in row)
        started = time.perf_counter()
        scorer = learner.scorer(final=False)
        compute_scores([scorer], data.packed, data.validation)
        validation = len(data.validation) / (time.perf_counter() - started)
        bare = _bare(learner, steps=max(4, len(data.train) // spec.train.batch_size))
        if i:
            result["loop"].append(row["train/images_per_s"])
            result["bare"].append(bare)
            result["validation"].append(validation)
    print(json.dumps(result))


def _bare(learner: Learner, steps: int) -> float:
    """Images/s of forward, backward and update on one batch that is there already."""
    inputs, targets = next(iter(build_feed(learner).batches(0, 0)))
    learner.training_mode()
    started = 0.0
    for step in range(steps + 2):
        if step == 2:
            started = time.perf_counter()
        with learner.execution.autocast():
            logits = learner.net(inputs)
        loss = learner.loss(logits.float(), targets)
        loss.backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
    return steps * len(targets) / (time.perf_counter() - started)


if __name__ == "__main__":
    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    main()
