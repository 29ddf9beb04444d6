"""A `data:` section from a look at a folder or archive: every guess is tried with the readers, the best counts.

A guess is a name pattern of the images with a reading of label files. It is worth how much its format speaks
for itself, times the images and references that it finds. Torch-free.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from pathlib import Path, PurePosixPath

from pipeline.data.guess_labels import LABEL_ENDINGS, Looked, look_at_labels
from pipeline.data.guess_table import Reading
from pipeline.data.guess_trials import Guess, Trials
from pipeline.data.images import is_image, natural_key
from pipeline.data.labels.table import some
from pipeline.data.sources import Source, open_source
from pipeline.errors import DataError
from pipeline.storage.files import absolute

_Opener = Callable[[Path], Source]
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_SAVE_AS_CSV = "save it as CSV UTF-8 (a kind in the list of your spreadsheet's `Save as`)"
_FORMATS = (
    "tables (a 0/1 column per label, or a column that lists labels), a text file of ids per label, COCO's instances, "
    "JSON lines, Pascal VOC's ImageSets, CelebA, NUS-WIDE's 0 and 1, and a folder per label"
)


def guess_data(source: Path, labels: Path | None = None) -> Guess:
    """The best guess for the images of `source` with the labels of a file, folder or archive.

    Without `labels` they are looked for in the source, then in files beside it. Raises DataError where there is no
    image or no way to read labels, with what was looked at.
    """
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> Source:
            return stack.enter_context(contextlib.closing(open_source(path)))

        images = opened(source)
        files = [member for member in images.members if is_image(member)]
        if not files:
            raise DataError(_no_images(images, opened, labels))
        trials = Trials(images, files)
        some_names = nsmallest(3, trials.files, key=natural_key)
        refused: list[str] = []
        for place, members in _places(opened, images, labels):
            looked = look_at_labels(place, members, trials.names_image, some_names)
            if labels is None and place is not images:
                looked.unsure.append(f"the labels lie beside {source.name}, in {place.path}")
                tables = (why for why in looked.refused if re.match(r"\S+\.[ct]sv: ", why))
                looked.refused = list(tables)  # other files need not belong to it
            refused += looked.refused
            own = {} if place is images else {"source": str(place.path)}
            if guess := trials.best(looked, own, place, refused):
                return guess
        folders = Reading({"format": "folders"}, 1, ("the folder of an image is taken for its label",))
        if labels is None and trials.has_label_folders:
            guess = trials.best(Looked([folders]), {}, images, refused)
        if guess is None:
            raise DataError(_no_labels(images, labels, files, refused))
        return guess


def is_folder_or_archive(path: Path) -> bool:
    """Whether files can be looked for in it."""
    return path.is_dir() or path.suffix.lower() in (".zip", ".tar")


def _places(opened: _Opener, images: Source, labels: Path | None) -> Iterator[tuple[Source, Sequence[str]]]:
    """Where labels are looked for, one place after the other: a source and its files."""
    source = images.path
    if labels is None:
        yield images, images.members
        for folder in _beside(source):
            names = sorted(path.name for path in folder.iterdir() if path.is_file())
            if beside := [name for name in names if name.lower().endswith(LABEL_ENDINGS)]:
                yield opened(folder), beside
    elif is_folder_or_archive(labels):
        place = opened(labels)
        yield place, place.members
    elif labels.suffix.lower() in SPREADSHEETS:
        raise DataError(f"{labels}: is a spreadsheet; {_SAVE_AS_CSV}, and name that file")
    elif not labels.name.lower().endswith(LABEL_ENDINGS):
        raise DataError(
            f"{labels}: no label file that can be read; known: {', '.join(LABEL_ENDINGS)}, .zip, .tar"
        )
    elif source.is_dir() and labels.resolve().is_relative_to(source.resolve()):
        yield images, [str(PurePosixPath(labels.resolve().relative_to(source.resolve())))]
    else:
        yield opened(absolute(labels).parent), [labels.name]


def _beside(source: Path) -> list[Path]:
    """The folders that hold it: where it lies as it was named, then where a link leads."""
    return list(dict.fromkeys((absolute(source).parent, source.resolve().parent)))


# ---------------------------------------------------------------- what is wrong


def _no_images(source: Source, opened: _Opener, labels: Path | None) -> str:
    held = sorted(source.members)
    if labels is not None and is_folder_or_archive(labels) and any(map(is_image, opened(labels).members)):
        right = f"labelgrid init {labels} {source.path}"
        return f"{source.path}: holds no image, but {labels} does; the images come first: {right}"
    archives = [member for member in held if member.lower().endswith((".zip", ".tar"))]
    if archives and source.path.is_dir():
        return f"{source.path}: holds no image, but {some(archives, 3)}; name the archive: {source.path / archives[0]}"
    return (
        f"{source.path}: holds no image (jpg, png, webp, tif, ...), but {some(held, 3) or 'nothing'}; name the folder, "
        ".zip or .tar of the photographs"
    )


def _no_labels(source: Source, labels: Path | None, files: Sequence[str], refused: Sequence[str]) -> str:
    """A sentence on where labels were looked for, what files were found to be, and what is known."""
    where = str(labels) if labels else f"{source.path}, and in files beside it"
    known = ", ".join(
        sorted({Path(member).suffix for member in source.members if not is_image(member)} - {""})
    )
    seen = list(dict.fromkeys(refused))
    lines = (
        "".join(f"\n  {why}" for why in seen[:5])
        or f"\n  no label file is there (other files: {known or 'none'})"
    )
    boxes = [member for member in source.members if member.lower().endswith(".xml")]
    hint = "; VOC's XML boxes are not read: convert them to COCO" if boxes else ""
    sheets = [member for member in source.members if member.lower().endswith(SPREADSHEETS)]
    for folder in _beside(source.path) if labels is None else ():
        sheets += sorted(p.name for p in folder.iterdir() if p.name.lower().endswith(SPREADSHEETS))
    hint += f"; {some(sheets, 2)} is a spreadsheet: {_SAVE_AS_CSV}" if sheets else ""
    return (
        f"{source.path}: {len(files):,} images, and no labels that can be read in {where}{hint}. Name the label file: "
        f"labelgrid init {source.path} LABELS. Known are {_FORMATS} (docs/data.md).{lines}"
    )
