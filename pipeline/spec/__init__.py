"""The spec: a YAML file as frozen, strict, typed values. Torch-free.

Every default lives here and nowhere else. A field that cannot change a result is marked `OUTSIDE`
(it stays out of the identity hash); a field added later keeps finished cells finished, because a
field at the default it was introduced with stays out of the hash too (`pipeline/spec/identity.py`).
The text under each field is its documentation: `pipeline/spec/reference.py` reads it for editors,
docs/spec.md and `jobs keys`. Reading, overriding and reporting mistakes is in `pipeline/spec/reading.py`.
"""

from __future__ import annotations

# fmt: off
from pipeline.spec.data import DataSpec, NegativesSpec, SetAsideSpec, TestSpec
from pipeline.spec.evaluate import EvaluateSpec, SubmissionSpec, TopCells
from pipeline.spec.fields import (
    LOWER_IS_BETTER, METRICS, OUTSIDE, SAME_BATCHES, SAME_BATCHES_OF_PIXELS, CalibrationMethod, Count, MetricName,
    Positive, Section, Seed, Share, TunedMetric, expand_path, in_training,
    needs_decisions,
)
from pipeline.spec.grid_section import GridSpec
from pipeline.spec.heads import CsraHead, HeadSpec, LinearHead
from pipeline.spec.labels import (
    CelebaLabels, CocoLabels, Delimiter, FolderLabels, IdListLabels, JsonLinesLabels, LabelNames, LabelsSpec,
    ListColumnLabels, OneHotLabels, TableLabels, VectorLabels, VocLabels,
)
from pipeline.spec.model_names import IMAGENET, Preprocessing
from pipeline.spec.own_code import OwnCall, OwnCode, is_own
from pipeline.spec.recipe import (
    Adadelta, Adam, AdamW, AsymmetricLoss, BceLoss, BceSoftF1Loss, Constant, Cosine, CosineRestarts, FocalLoss,
    LossSpec, OneCycle, OptimizerSpec, OwnLoss, Plateau, RmsProp, SamplingSpec, ScheduleSpec, Sgd, SoftF1Loss,
    SoftmaxF1Loss, Step,
)
from pipeline.spec.run import ResourceRule, RunSpec
from pipeline.spec.spec import Spec
from pipeline.spec.splits import (
    ColumnSpec, ColumnSplit, GivenSplit, GroupPattern, GroupSpec, IdRanges, ListSplit, OrderedSplit, PartSpec,
    RandomSplit, RangeSplit, SplitSpec, StratifiedSplit,
)
from pipeline.spec.train import AugmentSpec, ModelSpec, TrainSpec
# fmt: on
