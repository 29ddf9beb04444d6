"""The `data:` section: where images and labels are, how they are packed and split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.spec.fields import OUTSIDE, FilePath, Number, Pixels, Section, Seed, Share
from pipeline.spec.labels import IdListLabels, LabelsSpec, VectorLabels, VocLabels
from pipeline.spec.splits import GivenSplit, OrderedSplit, PartSpec, SplitSpec


class NegativesSpec(Section):
    """What happens to negative images (without any label)."""

    train: Literal["keep", "drop"] | Share = "keep"
    """Keeps or drops those in training; a number keeps that fraction of them. Lower it where they dominate."""
    validation: Literal["keep", "drop"] = "keep"
    """Keeps or drops those in validation. Keep them where the images to predict have such too."""
    seed: Seed = 0
    """Draws which of them a fraction keeps."""


class SetAsideSpec(Section):
    """The largest fractions of what is set aside before wrangling stops; `wrangle_report.json` lists what was."""

    undecodable: Share = 0.01
    """Of the images: those that cannot be decoded."""
    without_row: Share = 0.01
    """Of the images: those that the label file does not mention. Their labels are unknown, so they are left out."""
    unknown_references: Share = 0.01
    """Of the entries of label files and lists: those that name no image."""


class TestSpec(Section):
    """The images to predict, in a source of their own; labels only to score the submission."""

    __test__ = False  # not a pytest class
    source: FilePath
    """The folder, .zip or .tar of the test images."""
    images: str | None = None
    """The name pattern of the test images, with `{id}` once. null: that of `data.images`."""
    image_list: FilePath | None = None
    """A text file of ids or names, one a line: only these images, in this order. null: all images."""
    labels: LabelsSpec | Literal["none"] | None = None
    """The true labels, where known. They only score the submission. null: as `data.labels`, if they are there."""
    overlap: Literal["refuse", "allow"] = "refuse"
    """What happens to test pictures that training has too. `allow` names them beside every test score."""


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("write [low, high], low first")
    return value


PixelRange = Annotated[tuple[Number, Number], AfterValidator(_rising)]


class DataSpec(Section):
    """Where images and labels are, how they are packed and split."""

    source: FilePath
    """The folder, .zip or .tar of the images, read where it lies.

    `$VAR` and `~` are expanded. A relative path starts at the folder above `experiments/`.
    """
    images: str = "im{id}.jpg"
    """The images' name pattern, with `{id}` once. Folders above those it names need not be named.

    `{id}` may span folders, and `{id}.*` takes every image format. The ending's case does not count.
    """
    image_list: FilePath | None = None
    """A text file of ids or names, one a line: only these images, in this order. null: all images."""
    labels: LabelsSpec = IdListLabels()
    """Where the labels are, and in which format."""
    size_px: Pixels = 128
    """The side of the stored square pictures, in pixels. `train.image_px` may differ from it."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` scales both sides to `size_px`. `crop` scales the shorter side and keeps the middle square."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """The filter of that resize, antialiased. `bicubic` keeps more detail; use it where the networks learnt from it.

    From the stored size to another `train.image_px`, pictures are resized as the network's weights want it.
    """
    range: Literal["full", "auto"] | PixelRange = "full"
    """Which values of pictures with more than 8 bits become black and white.

    `full`: 0 and 65535. `auto`: the smallest and largest value in the set, e.g. for 12 bits in 16.
    [low, high]: these.
    """
    split: SplitSpec = OrderedSplit()
    """How the images are divided into training, validation and test."""
    negatives: NegativesSpec = NegativesSpec()
    """What happens to images without any label, after the split."""
    set_aside: SetAsideSpec = Field(default=SetAsideSpec(), json_schema_extra=OUTSIDE)
    """How much may be unusable before wrangling stops, for each kind by itself."""
    test: TestSpec | None = Field(default=None, json_schema_extra=OUTSIDE)
    """The images to predict for a submission. null: the test part of `split`, if it has one."""

    @model_validator(mode="after")
    def _patterns_have_their_field(self) -> DataSpec:
        split = self.split
        parts: dict[str, PartSpec | TestSpec | None] = {"test": self.test}
        if isinstance(split, GivenSplit):
            parts |= {"split.validation": split.validation, "split.test": split.test}
        images = {"": self.images} | {f"{key}.": part.images for key, part in parts.items() if part}
        for key, pattern in images.items():
            if pattern is not None and pattern.count("{id}") != 1:
                raise ValueError(f"{key}images {pattern!r} must hold {{id}} once, e.g. im{{id}}.jpg")
        labels = {"": self.labels} | {f"{key}.": part.labels for key, part in parts.items() if part}
        for key, section in labels.items():
            if (
                isinstance(section, IdListLabels | VectorLabels | VocLabels)
                and "{label}" not in section.files
            ):
                raise ValueError(f"{key}labels.files {section.files!r} must hold {{label}} once")
        for key, part in parts.items():
            if isinstance(part, PartSpec) and part == PartSpec():
                raise ValueError(f"{key}: name its source, images, image_list or labels")
        return self
