"""The rule that turns scores into decisions: fitted on validation, the same in evaluate and submission. Torch-free.

It is never stored to be read back. It is a pure function of the spec's `evaluate` and the verified
`scores_val.npz`, so it is fitted where it is needed and cannot belong to other scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import SubmissionError
from pipeline.metrics.calibration import Calibration, fit_calibration
from pipeline.metrics.expected_f1 import maximise_expected_f1
from pipeline.metrics.multilabel import Decisions, Scores
from pipeline.metrics.thresholds import decide, tune
from pipeline.seeding import seeded
from pipeline.spec import EvaluateSpec
from pipeline.spec.identity import digest
from pipeline.storage.run_dir import RunDir

# N images, K labels
FOLDS = 5


def mean_scores(several: Iterable[Scores]) -> Scores:
    """Mean of the scores of several cells, held one at a time; the scores themselves for one cell."""
    cells = iter(several)
    first_NK, total_NK, count = next(cells), None, 1
    for scores_NK in cells:
        # in the order, and so to the bits, of np.mean over the cells
        total_NK = first_NK.astype(np.float64) if total_NK is None else total_NK
        total_NK += scores_NK
        count += 1
    return first_NK if total_NK is None else (total_NK / count).astype(np.float32)


@dataclass(frozen=True)
class Validation:
    """A cell's `scores_val.npz`, or the mean of several."""

    ids: list[str]
    labels: list[str]
    scores_NK: Scores
    targets_NK: Decisions

    @cached_property
    def digest(self) -> str:
        """Digest of the images and their labels; cells with equal digests can be compared. Of no file."""
        targets_NK = np.ascontiguousarray(self.targets_NK, np.uint8)
        found = hashlib.sha256(digest([self.ids, self.labels]).encode())
        found.update(targets_NK.data)
        return found.hexdigest()

    @classmethod
    def read(cls, run: RunDir) -> Validation:
        """Read it after verifying it against the manifest; raises CheckpointError."""
        with np.load(run.verify(run.scores_val)) as file:
            return cls(file["ids"].tolist(), file["labels"].tolist(), file["scores"], file["targets"])

    @classmethod
    def mean(cls, several: Iterable[Validation]) -> Validation:
        """Mean scores of cells that were validated on the same images; a SubmissionError where they were not."""
        cells = iter(several)
        first = next(cells)

        def scores() -> Iterator[Scores]:
            yield first.scores_NK
            for other in cells:
                if other.digest != first.digest:
                    raise SubmissionError(
                        "submission.cells: these cells were validated on different images or labels; "
                        "name cells of one data set and split"
                    )
                yield other.scores_NK

        return cls(first.ids, first.labels, mean_scores(scores()), first.targets_NK)


@dataclass(frozen=True)
class DecisionRule:
    """Calibration, then a threshold per label; without thresholds, the highest expected F1 of each image."""

    text: str
    calibration: Calibration
    thresholds_K: npt.NDArray[np.float32] | None
    empty_f1: float

    @classmethod
    def fit(cls, evaluate: EvaluateSpec, scores_NK: Scores, targets_NK: Decisions) -> DecisionRule:
        """What `evaluate` asks for, fitted on these images: a pure function of the spec and the scores."""
        calibration = fit_calibration(evaluate.calibrate, scores_NK, targets_NK)
        calibrated_NK = calibration(scores_NK)
        thresholds_K = None
        empty_f1 = 0.0 if evaluate.tuned_for == "f1_samples_empty0" else 1.0
        if evaluate.threshold == "expected_f1":
            text = f"highest expected F1 of each image, a correctly empty decision counts {empty_f1:g}"
        elif evaluate.threshold == "per_label":
            expected = evaluate.tune_on == "expected"
            thresholds_K = tune(evaluate.tuned_for, calibrated_NK, calibrated_NK if expected else targets_NK)
            what = f"expected {evaluate.tuned_for}" if expected else evaluate.tuned_for
            text = f"thresholds per label tuned for {what} on validation"
        else:
            thresholds_K = np.full(scores_NK.shape[1], evaluate.threshold, np.float32)
            text = f"threshold {evaluate.threshold:g}"
        if evaluate.calibrate != "none":
            text += f", scores calibrated ({evaluate.calibrate})"
        return cls(text, calibration, thresholds_K, empty_f1)

    def __call__(self, scores_NK: Scores) -> Decisions:
        """Decisions (N, K) of 0 and 1. An image gets no label where no score reaches its threshold."""
        calibrated_NK = self.calibration(scores_NK)
        if self.thresholds_K is None:
            return maximise_expected_f1(calibrated_NK, self.empty_f1)
        return decide(calibrated_NK, self.thresholds_K)

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        thresholds = None if self.thresholds_K is None else self.thresholds_K.tolist()
        return {"text": self.text, "thresholds": thresholds, **self.calibration.as_dict()}


def out_of_fold_decisions(
    evaluate: EvaluateSpec, scores_NK: Scores, targets_NK: Decisions
) -> tuple[Decisions, Scores]:
    """Cross-fitting: decisions and calibrated scores (N, K), each fifth under the rule fitted on the other four.

    Fitting and measuring on the same images would overestimate rare labels.
    """
    images = len(scores_NK)
    fold_N = seeded(0, "threshold folds").permutation(np.arange(images) % min(FOLDS, max(images, 1)))
    decisions_NK, calibrated_NK = np.zeros(scores_NK.shape, np.uint8), np.zeros_like(scores_NK)
    for fold in np.unique(fold_N):
        inside = fold_N == fold
        rule = DecisionRule.fit(evaluate, scores_NK[~inside], targets_NK[~inside])
        decisions_NK[inside] = rule(scores_NK[inside])
        calibrated_NK[inside] = rule.calibration(scores_NK[inside])
    return decisions_NK, calibrated_NK
