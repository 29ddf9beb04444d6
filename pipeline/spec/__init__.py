"""The spec: a YAML file as frozen, strict, typed values. Torch-free.

Every default lives here and nowhere else. A field that cannot change a result is marked `OUTSIDE`
(it stays out of the identity hash); a field added later keeps finished cells finished, because a
field at the default it was introduced with stays out of the hash too (`pipeline/identity.py`).
Reading, overriding and reporting mistakes is in `pipeline/specfile.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.spec.data import (
    CocoLabels,
    DataSpec,
    IdListLabels,
    IdRanges,
    LabelsSpec,
    ListColumnLabels,
    ListSplit,
    OneHotLabels,
    OrderedSplit,
    RandomSplit,
    RangeSplit,
    SplitSpec,
    StratifiedSplit,
    TestSpec,
    UnlabelledSpec,
)
from pipeline.spec.fields import (
    LOWER_IS_BETTER,
    OUTSIDE,
    Count,
    MetricName,
    Positive,
    Section,
    Seed,
    Share,
    expand_path,
)
from pipeline.spec.train import (
    Adadelta,
    Adam,
    AdamW,
    AugmentSpec,
    BceLoss,
    Constant,
    Cosine,
    LossSpec,
    ModelSpec,
    OneCycle,
    OptimizerSpec,
    Plateau,
    RmsProp,
    ScheduleSpec,
    Sgd,
    SoftF1Loss,
    SoftmaxF1Loss,
    Step,
    TrainSpec,
)


class EvaluateSpec(Section):
    """From scores to decisions, and by what the best cell is chosen."""

    threshold: Literal["per_label"] | Share = 0.5
    select_by: MetricName = "f1_micro"


class ResourceRule(Section):
    """What the cells that match `when` ask of a cluster instead of its profile's `train`."""

    when: dict[str, Any] = Field(default_factory=dict)  # dotted key -> value; {}: every cell
    partition: str | None = None
    time_min: Count | None = None
    cpus: Count | None = None
    mem_gb: Positive | None = None
    gres: str | None = None
    cells_per_job: Count | None = None
    side_by_side: Count | None = None


class RunSpec(Section):
    """How cells are run here; never changes what they are."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Count | None = None  # cells at once; default: as many as there are GPUs, else cores
    threads: Count | None = None  # per cell; default: cores / cells at once
    save_every_min: Positive = 10.0
    save_share: Positive = 0.02  # of the time at most; a save waits while it would cost more
    resources: tuple[ResourceRule, ...] = ()  # on a cluster; a later rule wins
    budget_units: Positive | None = None  # of the cluster's billing: `plan` says, `grid` refuses to go beyond


class GridSpec(Section):
    """axes x cells x seeds, without what `exclude` names."""

    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    cells: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    seeds: tuple[Seed, ...] = ()
    # cells of equal data, pictures, batches and seed in one process, each as if alone: auto where that pays here
    together: Literal["auto"] | bool = "auto"


class Spec(Section):
    """One question: a data set, a recipe, and the grid of variations to compare."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    data: DataSpec
    train: TrainSpec = TrainSpec()
    grid: GridSpec = GridSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    run: RunSpec = RunSpec()


__all__ = [
    "LOWER_IS_BETTER",
    "OUTSIDE",
    "Adadelta",
    "Adam",
    "AdamW",
    "AugmentSpec",
    "BceLoss",
    "CocoLabels",
    "Constant",
    "Cosine",
    "Count",
    "DataSpec",
    "EvaluateSpec",
    "GridSpec",
    "IdListLabels",
    "IdRanges",
    "LabelsSpec",
    "ListColumnLabels",
    "ListSplit",
    "LossSpec",
    "MetricName",
    "ModelSpec",
    "OneCycle",
    "OneHotLabels",
    "OptimizerSpec",
    "OrderedSplit",
    "Plateau",
    "Positive",
    "RandomSplit",
    "RangeSplit",
    "ResourceRule",
    "RmsProp",
    "RunSpec",
    "ScheduleSpec",
    "Section",
    "Seed",
    "Sgd",
    "Share",
    "SoftF1Loss",
    "SoftmaxF1Loss",
    "Spec",
    "SplitSpec",
    "Step",
    "StratifiedSplit",
    "TestSpec",
    "TrainSpec",
    "UnlabelledSpec",
    "expand_path",
]
