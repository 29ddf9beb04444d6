"""Guesses of a `data:` section, tried with the readers on the images of a source. Torch-free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.data.columns import read_columns
from pipeline.data.guess_images import PART_WORDS, below, group_pattern, patterns_of, roots_of
from pipeline.data.guess_labels import Looked
from pipeline.data.guess_table import Reading
from pipeline.data.images import list_images
from pipeline.data.index import Index
from pipeline.data.labels.table import some
from pipeline.data.packed import PackedSet
from pipeline.data.reading import DataRead, read_data
from pipeline.data.references import UNKNOWN, Finder
from pipeline.data.sources import Source
from pipeline.data.splits import Split, make_split
from pipeline.errors import DataError
from pipeline.spec import DataSpec

_NO_LABEL = frozenset(
    {"no finding", "no findings", "normal", "none", "no label", "negative", "background", "nothing"}
)
_LOOSE = {"without_row": 1, "unknown_references": 1}
_NEAR = 0.8  # of the best guess's worth: the other one is named


@dataclass
class Guess:
    """A `data:` section that the readers accept, what they read, and what is not certain."""

    section: dict[str, Any]
    read: DataRead
    worth: float
    unsure: list[str] = field(default_factory=list)
    others: list[Guess] = field(default_factory=list)  # worth nearly as much, with other labels

    @property
    def like_no_label(self) -> list[str]:
        """Labels whose names say that there is none."""
        return [label for label in self.read.labels if label.casefold() in _NO_LABEL]

    def __str__(self) -> str:
        labels = self.section["labels"]
        where = labels.get("file") or labels.get("files") or "the images' folders"
        return f"{where} ({labels['format']}, {len(self.read.labels)} labels: {some(self.read.labels, 3)})"


class Trials:
    """The images of a source, and the guesses that are tried on them."""

    def __init__(self, source: Source, files: list[str]) -> None:
        self.source = source
        self.roots = roots_of(files)
        mine = below(self.roots["train"], files) if self.roots else files
        inside = self.roots.get("train", "")  # a pattern that names it finds no image of another part
        self.files, self.patterns = mine, [p for p in patterns_of(mine) if p.startswith(inside)]
        self.everything = patterns_of(files)[0]
        self._told: dict[str, set[str]] = {}  # labels -> the parts that they speak of
        folders = {file.rpartition("/")[0] for file in mine}
        self.has_label_folders = len(folders) > 1 and 2 * len(folders) <= len(mine)
        patterns = dict.fromkeys([self.everything, self.patterns[0]])
        self._finders = [Finder(list_images(source, pattern).matched) for pattern in patterns]

    def names_image(self, text: str) -> bool:
        """Whether a text names an image, or could name several."""
        return bool(text) and any(finder.find(text) != UNKNOWN for finder in self._finders)

    def best(self, looked: Looked, own: dict[str, Any], place: Source, refused: list[str]) -> Guess | None:
        """The guess that is worth most, with its split; None where no reading works."""
        guesses = []
        for reading in sorted(looked.readings, key=lambda reading: -reading.rank):
            if self.roots and not self._is_of({**reading.labels, **own}, "train"):
                continue
            tried = [self._try(pattern, reading, own, refused) for pattern in self.patterns]
            guesses += [max(filter(None, tried), key=lambda g: g.worth)] if any(tried) else []
        if not guesses:
            return None
        guesses.sort(key=lambda guess: -guess.worth)
        done: list[Guess] = []
        for guess in guesses:
            near = guess.worth >= _NEAR * guesses[0].worth
            if near and all(guess.read.labels != other.read.labels for other in done):
                self._divide(guess, looked, own, place)
                done.append(guess)
        best, *best.others = done
        return best

    def _try(self, pattern: str, reading: Reading, own: dict[str, Any], refused: list[str]) -> Guess | None:
        """What the readers say of a pattern with a reading; limits are raised only as far as they must be."""
        labels = {**reading.labels, **own}
        split = {} if "method" in reading.split else {"method": "stratified", "validation": 0.2}
        split |= reading.split
        section = {"source": str(self.source.path), "images": pattern, "labels": labels, "split": split}
        unsure = list(reading.unsure)
        try:
            read = _read({**section, "labels": {**labels, "empty": "drop"}, "set_aside": _LOOSE})
        except DataError as error:
            refused.append(str(error).removeprefix(f"{self.source.path}/"))
            return None
        problems, aside = read.problems, {}
        kinds = {
            "without_row": (problems.without_row, problems.images, "images have no row in the label file"),
            "unknown_references": (
                problems.unknown,
                problems.references,
                "entries of the label file name no image",
            ),
        }
        for limit, (entries, total, what) in kinds.items():
            if len(entries) > 0.01 * total:
                aside[limit] = math.ceil(100 * len(entries) / total) / 100
                unsure.append(f"{len(entries):,} of {total:,} {what}, e.g. {entries[0]}; they are left out")
        if aside:
            section["set_aside"] = aside
        try:
            _read(section)
        except DataError:
            section["labels"] = {**labels, "empty": "drop"}
        try:
            split_of(section, read)
        except DataError as error:
            if not reading.split:
                refused.append(str(error).removeprefix(f"{self.source.path}/"))
                return None
            unsure.append(f"columns of the table that seem to divide the images are not used: {error}")
            plain = replace(reading, unsure=(*reading.unsure, unsure[-1]), split={})
            return self._try(pattern, plain, own, refused)
        known = 1 - len(problems.unknown) / max(1, problems.references) - 0.01 * len(aside)
        worth = reading.rank * len(read.images) / len(self.files) * known
        return Guess(section, read, worth, unsure) if worth else None

    # ------------------------------------------------------------ splits

    def _divide(self, guess: Guess, looked: Looked, own: dict[str, Any], place: Source) -> None:
        """Give a guess the split that lists, a partition file or folders tell, and its test images."""
        guess.unsure += looked.unsure
        if looked.split and guess.section["split"]["method"] == "stratified":
            self._as_told(guess, looked.split, own, place)
        for part in ("validation", "test"):
            if part in self.roots:
                self._add_part(guess, part, looked)
        if "group" not in guess.section["split"] and (pattern := group_pattern(self.files)):
            self._accept(guess, {"split": {**guess.section["split"], "group": {"pattern": pattern}}})

    def _as_told(self, guess: Guess, split: dict[str, Any], own: dict[str, Any], place: Source) -> None:
        told = {**split, **own} if split["method"] == "column" else dict(split)
        if split["method"] == "lists":
            if not place.path.is_dir():
                guess.unsure.append(
                    f"{some(list(split.values())[1:])} list a split, which an archive cannot give; unpack them, and "
                    "write data.split.method: lists"
                )
                return
            told = {k: v if k == "method" else str(place.path / v) for k, v in split.items()}
        if group := guess.section["split"].get("group"):
            told["group"] = group
        if not self._accept(guess, {"split": told}):
            guess.unsure.append(
                f"{some(list(map(str, split.values())))} do not divide the images as they seem to; not used"
            )

    def _add_part(self, guess: Guess, part: str, looked: Looked) -> None:
        """The images of the folder `val` or `test`, with their labels if some file has them."""
        labels = guess.section["labels"]
        same = [reading.labels for reading in looked.readings if reading.labels["format"] == labels["format"]]
        files = [
            {**labels, **{key: other[key] for key in ("file", "files") if key in other}} for other in same
        ]
        choices: list[Any] = [choice for choice in files if choice != labels and self._is_of(choice, part)]
        choices += [None] if self._is_of(labels, part) else []
        for choice in [*choices, "none"] if part == "test" else choices:
            images = {"images": patterns_of(below(self.roots[part], self.source.members))[0]}
            images |= {} if choice is None else {"labels": choice}
            if part == "validation":
                split = {"method": "given", "validation": images}
                done = self._accept(guess, {"split": split}, len(guess.read.images))
            else:
                done = self._accept(guess, {"test": {"source": str(self.source.path), **images}})
            if done:
                return
        guess.unsure.append(f"the images in {self.roots[part]} are not used: no labels for them were found")

    def _is_of(self, labels: dict[str, Any], part: str) -> bool:
        """Whether label files speak of the images of a part: by the paths they hold, else by their own names.

        1.jpg may be in train and in val; labels of one must not be read as those of the other.
        """
        key = repr(labels)
        if key not in self._told:
            section = {"source": str(self.source.path), "images": self.everything, "set_aside": _LOOSE}
            try:
                read = _read({**section, "labels": {**labels, "empty": "drop"}})
            except DataError:
                name = labels.get("file") or labels.get("files") or ""
                told = {
                    part
                    for part, words in PART_WORDS.items()
                    if re.search(rf"(?i)(?<![a-z])({words})(?![a-z])", name)
                }
                self._told[key] = told if len(told) == 1 else set()
            else:
                labelled = [
                    image.member for image, row in zip(read.images, read.labels_NK, strict=True) if row.any()
                ]
                self._told[key] = {part for part, root in self.roots.items() if below(root, labelled)}
        return part in self._told[key]

    def _accept(self, guess: Guess, change: dict[str, Any], more_than: int = 0) -> bool:
        """Change the guess where the readers still accept it, and read more images than so many."""
        section = {**guess.section, **change}
        try:
            read = _read(section)
            split_of(section, read)
            if "test" in change:
                tests = _read(section, test=True)
                if change["test"].get("labels") != "none" and not tests.labels:
                    return False
        except DataError:
            return False
        if len(read.images) <= more_than:
            return False
        guess.section, guess.read = section, read
        return True


def _read(section: dict[str, Any], *, test: bool = False) -> DataRead:
    try:
        return read_data(DataSpec.model_validate(section), test=test)
    except ValidationError as error:
        raise DataError(str(error)) from error


def split_of(section: dict[str, Any], read: DataRead) -> Split:
    """How a section divides the images that were read, before anything is decoded; a DataError where it cannot."""
    data = DataSpec.model_validate(section)
    # no two pictures are equal, as far as is known before they are decoded
    index = Index.of(
        (*image, part, f"{row:040x}")
        for row, (image, part) in enumerate(zip(read.images, read.splits, strict=True))
    )
    packed = PackedSet(
        Path(data.source), "", data.size_px, data.resize, index, tuple(read.labels), read.labels_NK
    )
    return make_split(data, packed, read_columns(data, packed))
