"""The `evaluate:` and `submission:` sections: from scores to decisions, and which cells are submitted."""

from __future__ import annotations

from typing import Annotated, Literal, cast, get_args

from pydantic import Field, model_validator

from pipeline.spec.fields import CalibrationMethod, MetricName, Section, Share, TunedMetric


class EvaluateSpec(Section):
    """From scores to decisions, and by what the best cell is chosen.

    An image where no label is reached gets none.
    """

    threshold: Literal["per_label", "expected_f1"] | Share = 0.5
    """A number is one threshold for all labels. `per_label` tunes one for each label on validation.

    `expected_f1` has none: each image gets the set of labels with the highest expected F1.
    """
    tune_for: TunedMetric | None = None
    """The metric that the decision rule maximises. Not allowed with a number as `threshold`.

    null: `select_by` where the rule can tune for it, else `f1_macro` for `per_label`, `f1_samples_empty1` for
    `expected_f1`.
    """
    tune_on: Literal["labels", "expected"] = "labels"
    """Only with `per_label`: `labels` tunes on the true labels, `expected` on calibrated scores.

    `expected` is less noisy where positives are few (Lipton et al. 2014). It needs `calibrate`.
    """
    calibrate: CalibrationMethod = "none"
    """Makes scores probabilities before deciding, per label, fitted on validation.

    `temperature` fits a slope (Guo et al. 2017), `platt` a slope and an intercept (Platt 1999).
    """
    select_by: MetricName = "f1_micro"
    """The leaderboard metric that ranks the cells and selects the best one."""

    @property
    def tuned_for(self) -> TunedMetric:
        """`tune_for`, or `select_by` where that can be tuned for, or what suits the rule."""
        if self.tune_for is not None:
            return self.tune_for
        per_image = self.select_by.startswith("f1_samples")
        can = per_image if self.threshold == "expected_f1" else not (per_image and self.tune_on == "expected")
        for metric in get_args(TunedMetric):
            if can and metric == self.select_by:
                return cast(TunedMetric, metric)
        return "f1_samples_empty1" if self.threshold == "expected_f1" else "f1_macro"

    @property
    def mismatch(self) -> str:
        """That decisions are tuned for another metric than ranks, and what to write; "" where they are not."""
        if not self.select_by.startswith("f1_"):
            return ""
        if not isinstance(self.threshold, str):
            if self.select_by in get_args(TunedMetric):
                return (
                    f"Cells are ranked by {self.select_by} at the fixed threshold {self.threshold:g}; tuned thresholds "
                    "usually raise it: evaluate.threshold: per_label."
                )
            return ""
        if self.tuned_for == self.select_by:
            return ""
        return (
            f"Decisions are tuned for {self.tuned_for} and cells ranked by {self.select_by}: write "
            f"evaluate.select_by: {self.tuned_for}, or another rule."
        )

    @model_validator(mode="after")
    def _sensible(self) -> EvaluateSpec:
        if self.threshold == "expected_f1" and not self.tuned_for.startswith("f1_samples"):
            raise ValueError(
                f"expected_f1 maximises F1 per image, not {self.tune_for}; "
                "write tune_for: f1_samples_empty1 (or _empty0), or threshold: per_label"
            )
        if self.tune_for and not isinstance(self.threshold, str):
            raise ValueError(
                f"threshold {self.threshold:g} is not tuned; write threshold: per_label, or no tune_for"
            )
        if self.tune_on == "expected":
            if self.threshold != "per_label":
                raise ValueError(f"tune_on: expected tunes thresholds, not {self.threshold}; write per_label")
            if self.calibrate == "none":
                raise ValueError("tune_on: expected takes scores for probabilities; write calibrate: platt")
            if self.tuned_for.startswith("f1_samples"):
                raise ValueError(
                    f"tune_on: expected knows f1_micro and f1_macro, not {self.tune_for}; "
                    "write one of them, or threshold: expected_f1, which maximises F1 per image"
                )
        return self


class TopCells(Section):
    """The best cells by `evaluate.select_by`."""

    top: Annotated[int, Field(ge=2)]
    """How many of the best cells are averaged."""


class SubmissionSpec(Section):
    """Whose scores become the submission, unless `select` picked a cell."""

    cells: Literal["best"] | Annotated[tuple[str, ...], Field(min_length=1)] | TopCells = "best"
    """`best` takes the best cell. A list of unique cell prefixes, or `{top: 3}`, makes an ensemble.

    An ensemble decides on the mean of its cells' scores, under one rule fitted on their mean.
    """
