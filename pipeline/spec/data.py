"""The `data:` section: where images and labels are, how they are packed and split."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, model_validator

from pipeline.spec.fields import OUTSIDE, FilePath, Pixels, Section, Seed, Share


class IdListLabels(Section):
    """One text file per label, holding the ids (or file names) of the images that have it."""

    format: Literal["id_lists"] = "id_lists"
    files: str = "annotations/{label}.txt"
    source: FilePath | None = None  # a folder or archive; default: the one that holds the images


class OneHotLabels(Section):
    """A CSV with a column of ids and one 0/1 column per label."""

    format: Literal["onehot_csv"]
    file: str
    id_column: str | None = None  # default: the first
    source: FilePath | None = None


class ListColumnLabels(Section):
    """A CSV with a column of ids and one column that lists the labels, e.g. `dog tree`."""

    format: Literal["list_csv"]
    file: str
    id_column: str | None = None  # default: the first
    labels_column: str | None = None  # default: the second
    separator: Annotated[str, Field(min_length=1)] = " "
    source: FilePath | None = None


class CocoLabels(Section):
    """COCO's `instances_*.json`: an image has a label if any object of that category is in it."""

    format: Literal["coco"]
    file: str
    source: FilePath | None = None


LabelsSpec = Annotated[IdListLabels | OneHotLabels | ListColumnLabels | CocoLabels, Discriminator("format")]


class _Fractions(Section):
    """Shares of the images; what validation and test leave is for training."""

    validation: Share = 0.2
    test: Share = 0.0

    @model_validator(mode="after")
    def _room_for_training(self) -> _Fractions:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test is {self.validation + self.test:g}; leave some for training")
        return self


class OrderedSplit(_Fractions):
    """In image order: training first, then validation, then test."""

    method: Literal["ordered"] = "ordered"


class RandomSplit(_Fractions):
    """Every image drawn independently of its labels."""

    method: Literal["random"]
    seed: Seed = 0


class StratifiedSplit(_Fractions):
    """Each split gets its share of every label (iterative stratification, Sechidis et al. 2011)."""

    method: Literal["stratified"]
    seed: Seed = 0


class ListSplit(Section):
    """Text files of ids or file names, one a line."""

    method: Literal["lists"]
    train: FilePath
    validation: FilePath
    test: FilePath | None = None


def _id_ranges(text: str) -> str:
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", part)
        if not match or int(match[1]) > int(match[2]):
            raise ValueError("write first-last, e.g. 1-15000 or 1-100,201-300")
    return text


IdRanges = Annotated[str, AfterValidator(_id_ranges)]


class RangeSplit(Section):
    """Ranges of numeric ids, both ends included: `train: 1-15000`."""

    method: Literal["ranges"]
    train: IdRanges
    validation: IdRanges
    test: IdRanges | None = None


SplitSpec = Annotated[
    OrderedSplit | RandomSplit | StratifiedSplit | ListSplit | RangeSplit, Discriminator("method")
]


class NegativesSpec(Section):
    """What happens to negative images (without any label)."""

    train: Literal["keep", "drop"] | Share = "keep"  # a number keeps that share of them, seeded
    validation: Literal["keep", "drop"] = "keep"
    seed: Seed = 0


class TestSpec(Section):
    """The images to predict, in a source of their own; labels only to score the submission."""

    __test__ = False  # not a pytest class
    source: FilePath
    images: str = "im{id}.jpg"
    image_list: FilePath | None = None
    labels: LabelsSpec | None = None


class DataSpec(Section):
    """Where images and labels are, how they are packed and split."""

    source: FilePath  # a folder, .zip or .tar
    images: str = "im{id}.jpg"
    image_list: FilePath | None = None  # a text file of ids: only these, in this order
    labels: LabelsSpec = IdListLabels()
    size_px: Pixels = 128
    resize: Literal["squash", "crop"] = "squash"  # crop: shorter side to size_px, middle square
    split: SplitSpec = OrderedSplit()
    negatives: NegativesSpec = NegativesSpec()
    max_bad_fraction: Share = Field(default=0.01, json_schema_extra=OUTSIDE)
    test: TestSpec | None = Field(default=None, json_schema_extra=OUTSIDE)

    @model_validator(mode="after")
    def _pattern_has_id(self) -> DataSpec:
        for pattern in (self.images, self.test.images if self.test else "{id}"):
            if pattern.count("{id}") != 1:
                raise ValueError(f"the name pattern {pattern!r} must hold {{id}} once, e.g. im{{id}}.jpg")
        for labels in (self.labels, self.test.labels if self.test else None):
            if isinstance(labels, IdListLabels) and labels.files.count("{label}") != 1:
                raise ValueError(f"labels.files {labels.files!r} must hold {{label}} once")
        return self
