"""The spec: a YAML file as frozen, strict, typed values. Torch-free.

Every default lives here and nowhere else. A field that cannot change a result is marked `OUTSIDE`
(it stays out of the identity hash); a field added later keeps finished cells finished, because a
field at the default it was introduced with stays out of the hash too (`pipeline/spec/identity.py`).
Reading, overriding and reporting mistakes is in `pipeline/spec/reading.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

# fmt: off
from pipeline.spec.data import (
    CocoLabels, DataSpec, IdListLabels, IdRanges, LabelsSpec, ListColumnLabels, ListSplit, OneHotLabels,
    OrderedSplit, RandomSplit, RangeSplit, SplitSpec, StratifiedSplit, TestSpec, NegativesSpec,
)
from pipeline.spec.fields import (
    LOWER_IS_BETTER, METRICS, OUTSIDE, CalibrationMethod, Count, MetricName, Positive, Section, Seed, Share,
    TunedMetric, expand_path, in_training,
)
from pipeline.spec.recipe import (
    Adadelta, Adam, AdamW, AsymmetricLoss, BceLoss, BceSoftF1Loss, Constant, Cosine, FocalLoss, LossSpec,
    OneCycle, OptimizerSpec, Plateau, RmsProp, SamplingSpec, ScheduleSpec, Sgd, SoftF1Loss, SoftmaxF1Loss,
    Step,
)
from pipeline.spec.train import AugmentSpec, ModelSpec, TrainSpec
# fmt: on


class EvaluateSpec(Section):
    """From scores to decisions, and by what the best cell is chosen.

    `per_label` thresholds are tuned on validation; `expected_f1` has none: each image gets the labels of
    the highest expected F1. An image where no label is reached gets none.
    """

    threshold: Literal["per_label", "expected_f1"] | Share = 0.5
    # what the rule is to maximise; default: f1_macro of per_label, f1_samples_empty1 of expected_f1
    tune_for: TunedMetric | None = None
    # of per_label: the images' labels, or what calibrated scores expect of them. That fits two numbers a label
    # instead of the extreme of a jagged curve, and errs less where positives are few (Lipton et al. 2014)
    tune_on: Literal["labels", "expected"] = "labels"
    calibrate: CalibrationMethod = "none"  # per label, on validation, before deciding
    select_by: MetricName = "f1_micro"

    @property
    def tuned_for(self) -> TunedMetric:
        """`tune_for`, or what suits the rule."""
        return self.tune_for or ("f1_samples_empty1" if self.threshold == "expected_f1" else "f1_macro")

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


class SubmissionSpec(Section):
    """Whose scores make the submission; `make select` goes before it."""

    # best: the best cell; [prefix, ..] or {top: 3}: the mean of several cells' scores, decided as one
    cells: Literal["best"] | Annotated[tuple[str, ...], Field(min_length=1)] | TopCells = "best"


class ResourceRule(Section):
    """What the cells that match `when` ask of a cluster instead of its profile's `train`."""

    when: dict[str, Any] = Field(default_factory=dict)  # dotted key -> value; {}: every cell
    partition: str | None = None
    time_min: Count | None = None
    cpus: Count | None = None
    mem_gb: Positive | None = None
    gres: str | None = None
    cells_per_job: Count | None = None
    concurrent_cells: Count | None = None


class RunSpec(Section):
    """How cells are run here; never changes what they are."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Count | None = None  # cells at once; default: as many as there are GPUs, else cores
    threads: Count | None = None  # per cell; default: cores / cells at once
    save_every_min: Positive = 10.0
    save_fraction: Positive = 0.02  # of the time at most; a save waits while it would cost more
    resources: tuple[ResourceRule, ...] = ()  # on a cluster; a later rule wins
    budget_units: Positive | None = None  # of the cluster's billing: `plan` says, `grid` refuses to go beyond


class GridSpec(Section):
    """axes x cells x seeds, without what `exclude` names."""

    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    cells: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    seeds: tuple[Seed, ...] = ()
    # cells of equal data, pictures, batches and seed in one process, each as if alone: auto where that pays here
    share_process: Literal["auto"] | bool = "auto"


class Spec(Section):
    """One question: a data set, a recipe, and the grid of variations to compare."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    data: DataSpec
    train: TrainSpec = TrainSpec()
    grid: GridSpec = GridSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    submission: SubmissionSpec = SubmissionSpec()
    run: RunSpec = RunSpec()
