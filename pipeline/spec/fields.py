"""What every section of a spec is made of: strictness, numbers, paths, names of metrics."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

MetricName = Literal[
    "f1_micro", "f1_macro", "f1_weighted", "f1_samples_empty0", "f1_samples_empty1",
    "precision_micro", "precision_macro", "precision_weighted", "precision_samples",
    "recall_micro", "recall_macro", "recall_weighted", "recall_samples",
    "map_macro", "map_micro", "label_accuracy", "exact_match", "hamming_loss",
    "f1_soft_samples", "f1_weighted_both_classes",
]  # fmt: skip
METRICS: tuple[str, ...] = get_args(MetricName)
LOWER_IS_BETTER: frozenset[str] = frozenset({"hamming_loss", "loss"})
TunedMetric = Literal["f1_macro", "f1_micro", "f1_samples_empty0", "f1_samples_empty1"]
CalibrationMethod = Literal["none", "temperature", "platt"]
_UNDECIDED = ("map_macro", "map_micro", "f1_soft_samples", "loss")

# marks at a field, as its `json_schema_extra`: it cannot change a result
OUTSIDE: dict[str, Any] = {"identity": False}
# cells that differ in it are still trained on the same batches, and may share a process
SAME_BATCHES: dict[str, Any] = {"same_batches": "always"}
# the same, but not of cached features (`train.cached_views`), which depend on it
SAME_BATCHES_OF_PIXELS: dict[str, Any] = {"same_batches": "pixels"}
# code of the user's own: how it is named, and what such names look like
OWN = "package.module:function"
IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
TAGS = ("name", "format", "method")  # the keys that choose between the members of a union
MARKS = (
    "identity",
    "introduced",
    "same_batches",
)  # for this program alone, not for readers of the JSON Schema


def needs_decisions(metric: str) -> bool:
    """Whether a metric (or `loss`) is one of decisions, not of scores."""
    return metric not in _UNDECIDED


def in_training(metric: str) -> str:
    """The name of a metric that training logs: what needs decisions is decided at 0.5, whatever ranks the cells."""
    return f"{metric}@0.5" if needs_decisions(metric) else metric


def _number(value: Any) -> Any:
    """Quoted numbers are numbers: `lr: "3e-4"` can mean nothing else in a float field."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def expand_path(text: str, root: Path) -> str:
    """An absolute path: `$VAR` and `~` expanded, relative paths taken from `root`."""
    missing = [name for name in re.findall(r"\$\{?(\w+)", text) if name not in os.environ]
    if missing:
        raise ValueError(f"the variable ${missing[0]} is not set; export it, or write the path")
    try:
        return str(root / Path(os.path.expandvars(text)).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{error}; write the path without ~user") from error


def resolve_path(value: Any, info: ValidationInfo) -> Any:
    """A validator: text becomes an absolute path, seen from the root in the validation context."""
    if not isinstance(value, str) or not info.context:
        return value
    return expand_path(value, info.context["root"])


FilePath = Annotated[str, BeforeValidator(resolve_path), Field(json_schema_extra={"format": "path"})]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=8, le=2048)]
Decay = Annotated[Number, Field(ge=0, lt=1)]  # of a running average
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def held(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field of this type may be, or hold in a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from held(part)


class Section(BaseModel):
    """One mapping of the spec: no unknown keys, no silent conversions, never changed after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
