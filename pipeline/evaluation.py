"""What validation scores are worth: decided, measured in three views with intervals, beside baselines. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.calibration import reliability
from pipeline.data.packed import PackedSet
from pipeline.data.seeding import seeded
from pipeline.data.splits import Split
from pipeline.files import write_json
from pipeline.identity import digest
from pipeline.leaderboard import Row
from pipeline.metrics import absent_labels, all_metrics, per_label
from pipeline.rundir import RunDir
from pipeline.spec import EvaluateSpec
from pipeline.statistics import bootstrap, intervals
from pipeline.thresholds import cross_fitted_decisions, decide, tune_per_label

# N images, K labels
Scores = npt.NDArray[np.float32]
Decisions = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Validation:
    """A cell's `scores_val.npz`."""

    ids: list[str]
    labels: list[str]
    scores_NK: Scores
    targets_NK: Decisions

    @property
    def digest(self) -> str:
        """Of the images and their truth: cells with an equal one can be compared."""
        return digest([self.ids, self.labels, self.targets_NK.tolist()])

    @classmethod
    def read(cls, run: RunDir) -> Validation:
        """Verified against the manifest first; raises CheckpointError."""
        with np.load(run.verify(run.scores_val)) as file:
            return cls(file["ids"].tolist(), file["labels"].tolist(), file["scores"], file["targets"])


@dataclass(frozen=True)
class Evaluated:
    """A measured cell: its row, what it was validated on, and `select_by` under each bootstrap resample."""

    row: Row
    validation: Validation
    resampled_R: npt.NDArray[np.float64]

    @property
    def absent(self) -> list[str]:
        """Labels without a validation image."""
        return absent_labels(self.validation.labels, self.validation.targets_NK)


def evaluate_cell(run: RunDir, evaluate: EvaluateSpec) -> Evaluated:
    """Measure a finished cell and write its report.json; raises CheckpointError where an artifact is damaged."""
    validation = Validation.read(run)
    scores_NK, targets_NK = validation.scores_NK, validation.targets_NK
    at50_NK = decide(scores_NK, np.full(len(validation.labels), 0.5, np.float32))
    if evaluate.threshold == "per_label":
        thresholds_K = tune_per_label(scores_NK, targets_NK)
        decisions_NK = cross_fitted_decisions(scores_NK, targets_NK)
        rule = "per label, tuned on validation; the metrics are cross-fitted"
    else:
        thresholds_K = np.full(len(validation.labels), evaluate.threshold, np.float32)
        decisions_NK = decide(scores_NK, thresholds_K)
        rule = f"{evaluate.threshold:g} for every label"
    metrics = views(scores_NK, decisions_NK, at50_NK, targets_NK)
    resampled = bootstrap(scores_NK, decisions_NK, targets_NK)
    metrics |= intervals(resampled)
    report = {
        "cell": run.name,
        "images": len(validation.ids),
        "threshold": rule,
        "absent_labels": absent_labels(validation.labels, targets_NK),
        "metrics": metrics,
        "calibration": reliability(scores_NK, targets_NK),
        "per_label": per_label(validation.labels, scores_NK, decisions_NK, targets_NK, thresholds_K),
    }
    write_json(run.report, report)
    row = Row(run.name, "done", metrics=metrics)
    return Evaluated(row, validation, resampled[evaluate.select_by])


def baselines(packed: PackedSet, split: Split) -> list[Row]:
    """Two rows to beat: never any label, and each label drawn at its share of the training images."""
    targets_NK = packed.labels_NK[split.validation]
    blank_NK = np.zeros(targets_NK.shape, np.uint8)
    prevalence_K = packed.labels_NK[split.train].mean(axis=0).astype(np.float32)
    prior_NK = np.broadcast_to(prevalence_K, targets_NK.shape).copy()
    drawn_NK = (seeded(0, "prior baseline").random(targets_NK.shape) < prior_NK).astype(np.uint8)
    rows = []
    for name, scores_NK, decisions_NK in (
        ("baseline-blank", blank_NK.astype(np.float32), blank_NK),
        ("baseline-prior", prior_NK, drawn_NK),
    ):
        metrics = views(scores_NK, decisions_NK, decisions_NK, targets_NK)
        metrics |= intervals(bootstrap(scores_NK, decisions_NK, targets_NK))
        rows.append(Row(name, "baseline", metrics=metrics))
    return rows


def views(
    scores_NK: Scores, decisions_NK: Decisions, at50_NK: Decisions, targets_NK: Decisions
) -> dict[str, float]:
    """Every metric by the spec's rule, at threshold 0.5 (`_at50`), and on images with a label (`_labelled`)."""
    labelled_N = targets_NK.any(axis=1)
    result = all_metrics(scores_NK, decisions_NK, targets_NK)
    at50 = all_metrics(scores_NK, at50_NK, targets_NK)
    result |= {f"{name}_at50": value for name, value in at50.items()}
    if labelled_N.any():
        labelled = all_metrics(scores_NK[labelled_N], decisions_NK[labelled_N], targets_NK[labelled_N])
        result |= {f"{name}_labelled": value for name, value in labelled.items()}
    return result
