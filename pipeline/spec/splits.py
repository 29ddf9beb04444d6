"""The `data.split:` section: how the images are divided into training, validation and test."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, model_validator

from pipeline.spec.fields import FilePath, Section, Seed, Share
from pipeline.spec.labels import CellValues, Delimiter, LabelsSpec, Words


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return text


class ColumnSpec(Section):
    """A column of a table that says something about every image."""

    column: str
    """The column's name. In a table without a header: its number, 1 is the first."""
    file: str | None = None
    """The table's name, or the end of its path. null: the table of `data.labels`."""
    source: FilePath | None = None
    """The folder or archive that holds the table. null: that of the labels."""
    id_column: str | None = None
    """The column of ids, file names or paths. null: as `data.labels` says, else the first column that has a name."""
    delimiter: Delimiter | None = None
    """What stands between two columns. null: as `data.labels` says; else a tab in a .tsv, a comma elsewhere."""
    header: bool | Words = True
    """Whether the first line names the columns. false: columns are called 1, 2, ... A list names them."""


class GroupPattern(Section):
    """Groups by the images' paths."""

    pattern: Annotated[str, AfterValidator(_regular_expression)]
    r"""A regular expression that is searched in the path, e.g. `(patient\d+)/`: its first `(...)` finds the group."""


GroupSpec = GroupPattern | ColumnSpec


class _Grouped(Section):
    group: GroupSpec | None = None
    """Images of one group (a patient, a scene, a film) never lie in two splits: a column, or a `pattern`."""


class _Fractions(_Grouped):
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
    """Each split gets its fraction of the images, and about that of every label (after Sechidis et al. 2011)."""

    method: Literal["stratified"]
    seed: Seed = 0
    """Another seed draws another split."""


class ListSplit(_Grouped):
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


class RangeSplit(_Grouped):
    """Ranges of numeric ids, both ends included: `train: 1-15000`."""

    method: Literal["ranges"]
    train: IdRanges
    """The ids for training, e.g. `1-15000` or `1-100,201-300`."""
    validation: IdRanges
    """The ids for validation; ranges must not overlap."""
    test: IdRanges | None = None
    """The ids for test, which a submission predicts where `data.test` is null. null: none."""


class ColumnSplit(ColumnSpec):
    """A column of a table: `split`, `is_valid`, or the partition file of CelebA."""

    method: Literal["column"]
    train: CellValues = ("train", "training", "0", "false")
    """The cells that mean training; numbers are compared as numbers, case does not count."""
    validation: CellValues = ("validation", "valid", "val", "dev", "1", "true")
    """The cells that mean validation. Cells that are in no list are refused."""
    test: CellValues = ("test", "testing", "2")
    """The cells that mean test, which a submission predicts where `data.test` is null."""
    group: GroupSpec | None = None
    """Groups whose images must not lie in two splits: a column, or a `pattern`."""


class PartSpec(Section):
    """The images of one split. What is null is as `data` says."""

    source: FilePath | None = None
    """The folder, .zip or .tar of the images."""
    images: str | None = None
    """The images' name pattern, with `{id}` once."""
    image_list: FilePath | None = None
    """A text file of ids or names, one a line: only these images, in this order. null: all images."""
    labels: LabelsSpec | None = None
    """Where the labels are. null: in the format of `data.labels`, in this part's source."""


class GivenSplit(_Grouped):
    """Images or labels that come divided, e.g. COCO's train2017 and val2017. `data` itself describes training."""

    method: Literal["given"]
    validation: PartSpec
    """The validation images: a source, a name pattern, a list or a label file of their own."""
    test: PartSpec | None = None
    """The test images, which a submission predicts where `data.test` is null. null: none."""


SplitSpec = Annotated[
    OrderedSplit | RandomSplit | StratifiedSplit | ListSplit | RangeSplit | ColumnSplit | GivenSplit,
    Discriminator("method"),
]
