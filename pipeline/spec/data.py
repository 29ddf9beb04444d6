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
    """The files' name pattern, with `{label}` once. It may name the ends of a path only."""
    source: FilePath | None = None
    """The folder or archive that holds the label files. null: the one that holds the images."""


class OneHotLabels(Section):
    """A CSV with a column of ids and one 0/1 column per label."""

    format: Literal["onehot_csv"]
    file: str
    """The CSV's name, or the end of its path. Cells are 0 or 1 (also false, true or empty)."""
    id_column: str | None = None
    """The column of ids or file names. null: the first column. All other columns are labels."""
    source: FilePath | None = None
    """The folder or archive that holds the CSV. null: the one that holds the images."""


class ListColumnLabels(Section):
    """A CSV with a column of ids and one column that lists the labels, e.g. `dog tree`."""

    format: Literal["list_csv"]
    file: str
    """The CSV's name, or the end of its path."""
    id_column: str | None = None
    """The column of ids or file names. null: the first column."""
    labels_column: str | None = None
    """The column that lists an image's labels. null: the second column."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """What stands between two labels in that column."""
    source: FilePath | None = None
    """The folder or archive that holds the CSV. null: the one that holds the images."""


class CocoLabels(Section):
    """COCO's `instances_*.json`: an image has a label if any object of that category is in it."""

    format: Literal["coco"]
    file: str
    """The JSON file's name, or the end of its path."""
    source: FilePath | None = None
    """The folder or archive that holds the file. null: the one that holds the images."""


LabelsSpec = Annotated[IdListLabels | OneHotLabels | ListColumnLabels | CocoLabels, Discriminator("format")]


class _Fractions(Section):
    """Fractions of the images; what validation and test leave is for training."""

    validation: Share = 0.2
    """The fraction of the images for validation: it chooses epochs, thresholds and cells."""
    test: Share = 0.0
    """The fraction of the images for test, which a submission predicts where `data.test` is null."""

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
    """Another seed draws another split."""


class StratifiedSplit(_Fractions):
    """Each split gets its fraction of every label (iterative stratification, Sechidis et al. 2011)."""

    method: Literal["stratified"]
    seed: Seed = 0
    """Another seed draws another split."""


class ListSplit(Section):
    """Text files of ids or file names, one a line."""

    method: Literal["lists"]
    train: FilePath
    """The list of training images."""
    validation: FilePath
    """The list of validation images; no image may be in two lists."""
    test: FilePath | None = None
    """The list of test images, which a submission predicts where `data.test` is null. null: none."""


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
    """The ids for training, e.g. `1-15000` or `1-100,201-300`."""
    validation: IdRanges
    """The ids for validation; ranges must not overlap."""
    test: IdRanges | None = None
    """The ids for test, which a submission predicts where `data.test` is null. null: none."""


SplitSpec = Annotated[
    OrderedSplit | RandomSplit | StratifiedSplit | ListSplit | RangeSplit, Discriminator("method")
]


class NegativesSpec(Section):
    """What happens to negative images (without any label)."""

    train: Literal["keep", "drop"] | Share = "keep"
    """Keeps or drops those in training; a number keeps that fraction of them. Lower it where they dominate."""
    validation: Literal["keep", "drop"] = "keep"
    """Keeps or drops those in validation. Keep them where the images to predict have such too."""
    seed: Seed = 0
    """Draws which of them a fraction keeps."""


class TestSpec(Section):
    """The images to predict, in a source of their own; labels only to score the submission."""

    __test__ = False  # not a pytest class
    source: FilePath
    """The folder, .zip or .tar of the test images."""
    images: str = "im{id}.jpg"
    """The name pattern of the test images, with `{id}` once."""
    image_list: FilePath | None = None
    """A text file of ids or names, one a line: only these images, in this order. null: all images."""
    labels: LabelsSpec | None = None
    """The true labels of the test images, where known. They only score the submission."""


class DataSpec(Section):
    """Where images and labels are, how they are packed and split."""

    source: FilePath
    """The folder, .zip or .tar of the images, read where it lies.

    `$VAR` and `~` are expanded. A relative path starts at the folder above `experiments/`.
    """
    images: str = "im{id}.jpg"
    """The images' name pattern, with `{id}` once. Folders above those it names need not be named."""
    image_list: FilePath | None = None
    """A text file of ids or names, one a line: only these images, in this order. null: all images."""
    labels: LabelsSpec = IdListLabels()
    """Where the labels are, and in which format."""
    size_px: Pixels = 128
    """The side of the stored square pictures, in pixels. `train.image_px` may differ from it."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` scales both sides to `size_px`. `crop` scales the shorter side and keeps the middle square."""
    split: SplitSpec = OrderedSplit()
    """How the images are divided into training, validation and test."""
    negatives: NegativesSpec = NegativesSpec()
    """What happens to images without any label, after the split."""
    max_bad_fraction: Share = Field(default=0.01, json_schema_extra=OUTSIDE)
    """The largest fraction of unreadable images, or of entries that name no image, before wrangling stops.

    What is below it is set aside and listed in `wrangle_report.json`.
    """
    test: TestSpec | None = Field(default=None, json_schema_extra=OUTSIDE)
    """The images to predict for a submission. null: the test part of `split`, if it has one."""

    @model_validator(mode="after")
    def _pattern_has_id(self) -> DataSpec:
        for pattern in (self.images, self.test.images if self.test else "{id}"):
            if pattern.count("{id}") != 1:
                raise ValueError(f"the name pattern {pattern!r} must hold {{id}} once, e.g. im{{id}}.jpg")
        for labels in (self.labels, self.test.labels if self.test else None):
            if isinstance(labels, IdListLabels) and labels.files.count("{label}") != 1:
                raise ValueError(f"labels.files {labels.files!r} must hold {{label}} once")
        return self
