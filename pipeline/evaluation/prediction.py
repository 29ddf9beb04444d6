"""Scores of the test images under a cell's best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.packed import PackedSet
from pipeline.distributed.group import SOLO, Group
from pipeline.errors import CheckpointError
from pipeline.evaluation.selection import TestImages
from pipeline.evaluation.submission import is_predicted, made_of, test_rows
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.device import ExecutionConfig
from pipeline.models.scoring import Scorer, compute_logits_by_ranks, refuse_divergence
from pipeline.spec import ModelSpec, Preprocessing, is_own
from pipeline.storage.files import atomic_write
from pipeline.storage.run_dir import RunDir


def own_code_of(run: RunDir, best: dict[str, Any]) -> Path | None:
    """The frozen code that makes the network of a cell; None where it is none of its user's own.

    Raises CheckpointError where it is gone or damaged.
    """
    name = best["model_spec"]["name"]
    if not is_own(name):
        return None
    if not run.own_code.exists():
        raise CheckpointError(
            f"{run.own_code}: is not there, and its code ({name}) makes the network; copy it from where the cell was "
            "trained"
        )
    return run.verify(run.own_code)


def load_scorer(best: dict[str, Any], device: str, code: Path | None = None) -> Scorer:
    """The network of a best checkpoint with its weights, on the device, ready to score.

    `code` is what `own_code_of` gives.
    """
    execution = ExecutionConfig.for_scoring(device, best["precision"])
    execution.apply()
    model = ModelSpec.model_validate(best["model_spec"] | {"weights": "none", "trainable": "all"})
    built_px = best["preprocessing"]["image_px"]
    if code is not None:  # a user's function may make another network for another size
        built_px = best["built_px"]
    net = build_model(model, len(best["labels"]), built_px, code=code)
    net.load_state_dict(best["model"])
    net = net.to(execution.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs leave memory_format out
    preprocessing = best["preprocessing"]
    flips = preprocessing.get("flips", False)  # checkpoints from before 24 November 2026 lack it
    way = Preprocessing(
        tuple(preprocessing["mean"]),
        tuple(preprocessing["std"]),
        preprocessing.get("interpolation", "bilinear"),  # and those from before 27 November 2026 this
    )
    return Scorer(net, preprocessing["image_px"], execution, way, flips)


def predict(
    runs: Sequence[RunDir], tests: Mapping[str, TestImages], *, device: str = "auto", group: Group = SOLO
) -> None:
    """Write `scores_test.npz` of every cell whose test images (by cell name) are not scored yet.

    It holds ids, names, labels, scores (N, K) float32, and `made_of`. Cells that predict the same
    images share one pass over them. Raises CheckpointError when a checkpoint is damaged or its pictures
    were packed in another way than these.

    The ranks of a group share the pictures, and the first one writes: all of them call it. Raises LostRankError.
    """
    # read once: on a shared disk, processes may see files of different age
    lacking = group.from_leader([run.name for run in runs if not is_predicted(run, *tests[run.name])])
    missing: dict[TestImages, list[RunDir]] = {}
    for run in runs:
        if run.name in lacking:
            missing.setdefault(tests[run.name], []).append(run)
    for images, several in missing.items():
        _predict(several, images, device, group)


def _predict(runs: Sequence[RunDir], images: TestImages, device: str, group: Group) -> None:
    packed_dir, split_file = images
    packed = PackedSet.open(packed_dir)
    rows = test_rows(packed, split_file)
    checkpoints = [_fitting(run, packed) for run in runs]
    scorers = [
        load_scorer(best, device, own_code_of(run, best)) for run, best in zip(runs, checkpoints, strict=True)
    ]
    group.meet(f"ready for {packed_dir.name} {split_file.name if split_file else ''}")
    logits = compute_logits_by_ranks(group, scorers, packed, rows)
    if logits is None:  # the first process writes
        return
    for run, best, logits_NK in zip(runs, checkpoints, logits, strict=True):
        refuse_divergence(logits_NK, packed, rows)
        with torch.inference_mode():
            scores_NK = logits_NK.sigmoid_().numpy()  # in their place: memory holds one number a score
        with atomic_write(run.scores_test) as file:
            np.savez(
                file,
                ids=np.array(list(packed.ids.take(rows))),
                names=np.array(list(packed.names.take(rows))),
                labels=np.array(best["labels"]),
                scores=scores_NK,
                made_of=np.array(made_of(run, packed_dir, split_file)),
            )
    under = f" under {len(runs)} cells" if len(runs) > 1 else ""
    print(f"scored {len(rows)} test images{under}")


def _fitting(run: RunDir, packed: PackedSet) -> dict[str, Any]:
    """The cell's best checkpoint, if it was trained on pictures packed like these."""
    best = load_checkpoint(run.verify(run.checkpoint_best))
    preprocessing = best["preprocessing"]
    interpolation = preprocessing.get("packed_interpolation", "bilinear")
    trained_on = (preprocessing["packed_px"], preprocessing["resize"], interpolation, preprocessing["range"])
    packed_as = (packed.size_px, packed.resize, packed.interpolation, packed.range)
    if trained_on != packed_as:
        raise CheckpointError(
            f"{run.checkpoint_best}: trained on pictures packed as {_words(*trained_on)}, the test set is packed "
            f"as {_words(*packed_as)}; use one data.size_px, data.resize, data.interpolation and data.range for both"
        )
    return best


def _words(size_px: int, resize: str, interpolation: str, ends: tuple[float, float] | None) -> str:
    values = f", values {ends[0]:g} to {ends[1]:g}" if ends else ""
    return f"{size_px} px ({resize}, {interpolation}{values})"
