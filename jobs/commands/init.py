"""`init`: look at images and label files, and write a spec that runs. Torch-free."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from jobs.commands.init_text import Recipe, flow, spec_text
from pipeline.data.guess_labels import LABEL_ENDINGS
from pipeline.data.guess_trials import Guess, split_of
from pipeline.data.guessing import SPREADSHEETS, guess_data, is_folder_or_archive
from pipeline.data.image_files import open_image
from pipeline.data.labels.table import some
from pipeline.data.reading import read_data
from pipeline.data.sources import READ_ERRORS, open_source
from pipeline.data.summary import summary
from pipeline.data.wrangle_report import build_report
from pipeline.errors import DataError, PipelineError, SpecError
from pipeline.spec import DataSpec
from pipeline.spec.reading import project_root, read_spec
from pipeline.storage.files import absolute, atomic_write, display_path, near_names
from pipeline.storage.typed import typed

_LOOKED_AT = 24  # images whose size is looked at


def init(source: Path, labels: Path | None, *, yes: bool, output: Path | None, force: bool) -> int:
    """Write a spec for the images of `source`; say what was understood, what is unsure, what to type next."""
    source, labels = _in_order(source, labels)
    path = output or Path("experiments") / f"{_name(source)}.yaml"
    if path.suffix not in (".yaml", ".yml"):
        raise SpecError(f"--output {path}: a spec is a .yaml file; write e.g. --output experiments/mine.yaml")
    for named in filter(None, (source, labels)):
        if not named.exists():
            raise DataError(
                f"{named}: there is no such file or folder{near_names(named)}; correct the path, or fetch it"
            )
    if path.exists() and not force:
        raise SpecError(
            f"{path}: is there already; choose another name by --output, or replace it by --force"
        )
    if any("$" in str(named.resolve()) for named in (source, labels or source)):
        raise SpecError(f"{source}: a spec reads $ in a path as a variable; use a path without it")
    guess = guess_data(source, labels)
    asks = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    guess, mirror = _questions(guess, asks=asks)
    size_px, deep = _pictures(guess)
    if deep:
        guess.section["range"] = "auto"
        guess.unsure.append(
            "pictures have more than 8 bits: data.range: auto takes their smallest and largest value"
        )
    recipe = Recipe(size_px, 64 if len(guess.read.images) >= 1000 else 16, mirror)
    unsure = _unsure(guess)
    root = project_root(path)
    section = _relative(guess.section, root)
    text = spec_text(section, recipe, absolute(source).name, display_path(path), unsure)
    _check(text, guess, root)
    with atomic_write(path, "w") as file:
        file.write(text)
    _tell(guess, unsure, path)
    return 0


def _in_order(source: Path, labels: Path | None) -> tuple[Path, Path | None]:
    """Images, then labels: a label file that was named first changes places, which is said."""
    if not (source.is_file() and source.name.lower().endswith((*LABEL_ENDINGS, *SPREADSHEETS))):
        return source, labels
    if labels is None:
        raise SpecError(
            f"{source}: looks like labels; name the folder, .zip or .tar of the images before it: "
            f"labelgrid init IMAGES {source}"
        )
    if is_folder_or_archive(labels):
        print(f"note: the images come first: {labels} is taken for them, {source} for their labels")
        return labels, source
    return source, labels


def _name(source: Path) -> str:
    place = absolute(source)
    stem = place.stem if place.is_file() else place.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "data"


def _questions(guess: Guess, *, asks: bool) -> tuple[Guess, bool]:
    """The guess as a person chooses it, and whether pictures may be mirrored: at most three questions."""
    if not asks:
        return guess, True
    if guess.others:
        choices = [guess, *guess.others][:4]
        print("The labels can be read in several ways:")
        for number, choice in enumerate(choices, 1):
            print(f"  {number}: {choice}")
        answer = _ask("Which one?", "1")
        if answer.isdecimal() and 1 < int(answer) <= len(choices):
            chosen = choices[int(answer) - 1]
            chosen.others = [choice for choice in choices if choice is not chosen]
            guess = chosen
    names = guess.like_no_label if len(guess.like_no_label) < len(guess.read.labels) else []
    if names and _ask(f"Does {some(names)} mean that an image has no label? yes or no", "no").startswith("y"):
        guess.section["labels"] |= {"none": [*guess.section["labels"].get("none", ()), *names]}
        guess.read = read_data(DataSpec.model_validate(guess.section))
    mirrored = _ask("May pictures be mirrored, because left and right mean the same? yes or no", "yes")
    return guess, not mirrored.startswith("n")


def _ask(question: str, default: str) -> str:
    try:
        return input(f"{question} [{default}] ").strip().lower() or default
    except EOFError:
        return default


def _pictures(guess: Guess) -> tuple[int, bool]:
    """The side in pixels that suits the pictures, and whether they have more than 8 bits."""
    step = max(1, len(guess.read.images) // _LOOKED_AT)
    sides, deep = [], False
    with closing(open_source(guess.section["source"])) as source:
        members = set(source.members)
        for image in guess.read.images[::step][:_LOOKED_AT]:
            if image.member not in members:
                continue
            try:
                with open_image(source.read(image.member)) as picture:
                    sides.append(min(picture.size))
                    deep |= picture.mode.startswith(("I", "F"))
            except (*READ_ERRORS, SyntaxError):
                continue  # wrangle names it
    middle = sorted(sides)[len(sides) // 2] if sides else 128
    return min(128, max(16, middle // 8 * 8)), deep


def _unsure(guess: Guess) -> list[str]:
    """What a person should look at, each in a sentence."""
    unsure = list(dict.fromkeys(guess.unsure))
    if guess.others:
        unsure.append(f"labels could also be read from {'; or from '.join(map(str, guess.others[:3]))}")
    if names := guess.like_no_label:
        unsure.append(
            f"{some(names)} is read as a label; if it means that there is none, write data.labels.none: {flow(names)}"
        )
    dropped = guess.section["labels"].get("empty") == "drop"
    if dropped:
        unsure.append("labels that no image has are dropped; labels.empty says so")
    if (guess.read.labels_NK.sum(axis=1) == 1).all() and len(guess.read.labels) > 1:
        unsure.append("every image has exactly one label; labels are still decided one by one")
    return unsure


def _relative(section: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The section with paths as a person would write them: from the project's root, where they lie below it."""

    def shown(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: shown(inner, name) for name, inner in value.items()}
        # what is not absolute is, but for sources, the name of a member or a column
        is_path = isinstance(value, str) and (key == "source" or Path(value).is_absolute())
        if not is_path or not Path(value).exists():
            return value
        for place, top in ((absolute(Path(value)), absolute(root)), (Path(value).resolve(), root.resolve())):
            if place.is_relative_to(top):
                return str(place.relative_to(top))
        return str(absolute(Path(value)))

    keys = ("source", "labels", "split", "test")
    return {**section, **{key: shown(section[key], key) for key in keys if key in section}}


def _check(text: str, guess: Guess, root: Path) -> None:
    """Raise where the text is not read as the guess was: what is written must run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        data = read_spec(path, root=root).spec.data
    read = read_data(data)
    if read.labels != guess.read.labels or [i.member for i in read.images] != [
        i.member for i in guess.read.images
    ]:
        raise PipelineError(
            f"{guess.section['source']}: its spec is not read as it was meant; write it by docs/data.md"
        )


def _tell(guess: Guess, unsure: list[str], path: Path) -> None:
    section, read = guess.section, guess.read
    split = split_of(section, read).summary().replace("split:", f"split ({section['split']['method']}):", 1)
    print(f"{display_path(Path(section['source']))}: images {section['images']}, labels from {guess}")
    print(summary(build_report(read), split))
    rows = np.flatnonzero(read.labels_NK.any(axis=1))
    for row in rows[:1].tolist():
        has = [label for label, present in zip(read.labels, read.labels_NK[row], strict=True) if present]
        print(f"example: {read.images[row].member} -> {some(has)}")
    print("".join(f"unsure: {text}\n" for text in unsure), end="")
    shown = display_path(path)
    label = "\nTo label other images, name them in it under data.test; then `submission` does all this and labels them."
    print(f"""written: {shown}
Type next:
  {typed("inspect", shown)}    twelve images with their labels: is that right?
  {typed("plan", shown)}    what would run
  {typed("grid", shown)}    train, and rank{"" if "test" in section else label}""")
