"""Decide and measure validation scores, in three variants, beside baselines. Torch-free."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from pipeline.data.packed import PackedSet
from pipeline.data.splits import Split
from pipeline.evaluation.kept import CellEvaluation, keep, kept, key_of
from pipeline.evaluation.leaderboard import Row
from pipeline.evaluation.recipes import settings_of
from pipeline.metrics.bootstrap import bootstrap, intervals
from pipeline.metrics.calibration import ece, reliability
from pipeline.metrics.decision_rule import DecisionRule, Validation, out_of_fold_decisions
from pipeline.metrics.multilabel import Decisions, Scores, absent_labels, all_metrics, per_label
from pipeline.metrics.thresholds import decide
from pipeline.seeding import seeded
from pipeline.spec import EvaluateSpec
from pipeline.storage.files import write_json
from pipeline.storage.run_dir import RunDir

# N images, K labels


def kept_cell(run: RunDir, evaluate: EvaluateSpec) -> CellEvaluation | None:
    """What is kept of a finished cell under this rule; None where it must be measured.

    Raises CheckpointError where an artifact is damaged. Scores are not read, and so not verified here:
    whoever uses them verifies them.
    """
    return kept(run, _verified(run, evaluate), evaluate.select_by)


def evaluate_cell(
    run: RunDir, evaluate: EvaluateSpec, only: Collection[str] | None = None
) -> CellEvaluation | None:
    """Measure a finished cell, write its report.json, and keep what was found; CheckpointError as above.

    With `only`, a cell that was validated on none of these (`Validation.digest`) is None and not measured.
    """
    key = _verified(run, evaluate)
    validation = Validation.read(run)
    if only is not None and validation.digest not in only:
        return None
    return measure(run, "done", validation, evaluate, key)


def _verified(run: RunDir, evaluate: EvaluateSpec) -> str:
    """The key of a cell whose small artifacts are whole."""
    run.verify(run.spec, run.provenance, run.metrics)
    return key_of(evaluate, run.digests_of(run.scores_val, run.spec))


def measure(
    run: RunDir, state: str, validation: Validation, evaluate: EvaluateSpec, key: str
) -> CellEvaluation:
    """Decide and measure scores, write report.json into `run`, and keep what was found under `key`."""
    labels, scores_NK, targets_NK = validation.labels, validation.scores_NK, validation.targets_NK
    at50_NK = decide(scores_NK, np.full(len(labels), 0.5, np.float32))
    rule = DecisionRule.fit(evaluate, scores_NK, targets_NK)
    decisions_NK, calibrated_NK = out_of_fold_decisions(evaluate, scores_NK, targets_NK)
    resampled = bootstrap(scores_NK, decisions_NK, targets_NK)
    metrics = metric_variants(scores_NK, decisions_NK, at50_NK, targets_NK) | intervals(resampled)
    absent = absent_labels(labels, targets_NK)
    report = {
        "cell": run.name,
        "images": len(validation.ids),
        "threshold": f"{rule.text}; metrics are cross-fitted where the rule is tuned",
        "rule": rule.as_dict(),
        "absent_labels": absent,
        "metrics": metrics,
        "calibration": reliability(calibrated_NK, targets_NK)
        | {"ece_uncalibrated": ece(scores_NK, targets_NK)},
        "per_label": per_label(labels, scores_NK, decisions_NK, targets_NK, rule.thresholds_K),
    }
    write_json(run.report, report)
    row = Row(run.name, state, metrics=metrics)
    found = CellEvaluation(row, validation.digest, absent, resampled[evaluate.select_by], settings_of(run))
    keep(run, key, found, resampled)
    return found


def baselines(packed: PackedSet, split: Split) -> list[Row]:
    """Two rows to beat: no label at all, and each label drawn at its frequency in training."""
    targets_NK = packed.labels_NK[split.validation]
    none_NK = np.zeros(targets_NK.shape, np.uint8)
    prevalence_K = packed.labels_NK[split.train].mean(axis=0).astype(np.float32)
    prior_NK = np.broadcast_to(prevalence_K, targets_NK.shape).copy()
    drawn_NK = (seeded(0, "prior baseline").random(targets_NK.shape) < prior_NK).astype(np.uint8)
    rows = []
    for name, scores_NK, decisions_NK in (
        ("baseline-blank", none_NK.astype(np.float32), none_NK),
        ("baseline-prior", prior_NK, drawn_NK),
    ):
        metrics = metric_variants(scores_NK, decisions_NK, decisions_NK, targets_NK)
        metrics |= intervals(bootstrap(scores_NK, decisions_NK, targets_NK))
        rows.append(Row(name, "baseline", metrics=metrics))
    return rows


def metric_variants(
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
