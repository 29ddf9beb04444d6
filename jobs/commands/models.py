"""Names of networks and their published weights, counted, searched and listed. Imports neither torch nor timm."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from jobs.planning.plan import weights_folder
from pipeline.errors import SpecError
from pipeline.models.hub import file_of
from pipeline.spec.model_names import CNNS, FAMILIES
from pipeline.spec.timm_catalogue import PREFIX, catalogue, near
from pipeline.spec.torchvision_catalogue import torchvision_weights
from pipeline.storage.files import display_path

_SHOWN = 40
_FAMILIES = 40
_WIDTH = 80  # of lists of families where no terminal says another
_MB_PER_MILLION = 4.0  # float32
_SPEC = "in a spec: train: {model: {name: resnet50, weights: IMAGENET1K_V2}}"
_SPEC_OF_TIMM = "in a spec: train: {model: {name: timm/convnext_tiny.fb_in22k}}"


class _Row(NamedTuple):
    name: str
    """As a spec has it; of torchvision with the name of the weights behind it."""
    family: str
    params_m: float | None
    gflops: float | None
    image_px: int
    mb: float | None
    licence: str
    file: str
    """In the folder of weights; empty of a network without published weights."""


def models(patterns: Sequence[str], sort: str, show_all: bool, weights: bool, here: bool) -> str:
    """The families of names; with patterns or options the networks they leave, a line each.

    A pattern with `*`, `?` or `[` is the whole name or the one after `timm/`, of several one must fit; other
    patterns are words that a name has, all of them. Raises SpecError where nothing is left.
    """
    folder = weights_folder(Path.cwd())
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not (patterns or weights or here):
        return "\n".join(_families(list(_rows()), _FAMILIES if not show_all else None))
    words = [pattern.lower() for pattern in patterns if not re.search(r"[*?[]", pattern)]
    globs = [pattern.lower() for pattern in patterns if re.search(r"[*?[]", pattern)]
    found = [row for row in _rows() if _fits(row.name.lower(), words, globs)]
    found = [row for row in found if (row.file or not weights) and (row.file in there or not here)]
    asked = " ".join([*map(shlex.quote, patterns), *["--weights"] * weights, *["--here"] * here])
    if not found:
        close = near(patterns[0]) if patterns else []
        hint = (
            f"the nearest names: {', '.join(close)}"
            if close
            else "`models` without a word counts what there is"
        )
        raise SpecError(f"{asked}: no such network; {hint}")
    keys = {"params": lambda row: row.params_m, "gflops": lambda row: row.gflops}
    if sort in keys:
        found.sort(key=lambda row: (keys[sort](row) is None, keys[sort](row)))
    shown = found if show_all else found[:_SHOWN]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = list(_table(shown, there, width))
    if len(shown) < len(found):
        lines.append(f"{len(found) - len(shown)} more: `models {asked} --all`, or more words")
    if any(row.file in there for row in shown):
        lines.append(f"*: its weights are in {display_path(folder)}")
    return "\n".join([*lines, _SPEC_OF_TIMM if shown[-1].name.startswith(PREFIX) else _SPEC])


def _rows() -> Iterator[_Row]:
    """Torchvision's weights, then timm's, in the order of names."""
    family_of = {name: family for family, (_, names) in FAMILIES.items() for name in names}
    for one in torchvision_weights().values():
        yield _Row(
            f"{one.name} {one.weights}", family_of[one.name], one.params_m, one.gflops, one.image_px,
            one.file_mb, one.licence, one.file,
        )  # fmt: skip
    for model in catalogue().values():
        family = re.split(r"[\d_.]", model.name)[0]
        has = bool(model.hub) and model.params_m is not None
        mb = _MB_PER_MILLION * model.params_m if has and model.params_m is not None else None
        yield _Row(
            PREFIX + model.name, family, model.params_m, model.gflops, model.image_px,
            mb, model.licence, file_of(model),
        )  # fmt: skip


def _fits(name: str, words: Iterable[str], globs: Sequence[str]) -> bool:
    own = name.removeprefix(PREFIX)
    fits = not globs or any(fnmatchcase(name, glob) or fnmatchcase(own, glob) for glob in globs)
    return fits and all(word in name for word in words)


def _families(rows: Sequence[_Row], most: int | None) -> Iterator[str]:
    """How many there are of each family, the most first."""
    for what, ours in (("torchvision", False), ("timm", True)):
        some = [row for row in rows if row.name.startswith(PREFIX) == ours]
        networks = {re.split("[ .]", row.name)[0] for row in some}
        yield f"{what}: {len(networks):,} networks, {sum(bool(row.file) for row in some):,} published weights"
        counts = Counter(row.family for row in some).most_common()
        named = "  ".join(f"{family}\N{NO-BREAK SPACE}{number}" for family, number in counts[:most])
        if most is not None and len(counts) > most:
            named += f"  and {len(counts) - most} smaller families (--all)"
        width = shutil.get_terminal_size((_WIDTH, 24)).columns
        folded = textwrap.wrap(
            named, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
        yield from (line.replace("\N{NO-BREAK SPACE}", " ") for line in folded)
    yield f"of Labelgrid: {', '.join(CNNS)}, small and without published weights"
    yield "`models convnext tiny`: what has both words, `models 'vit_*dino*'`: what fits;"
    yield "--weights leaves those with published weights, --here those in data/weights"


def _table(rows: Sequence[_Row], there: set[str], width: int | None) -> Iterator[str]:
    """A line a network; in `width` columns long names have a line of their own and long licences are cut."""
    facts = [
        [_digits(row.params_m), _digits(row.gflops), _digits(row.mb, 0), str(row.image_px)] for row in rows
    ]
    heads = ["M params", "GFLOPs", "MB", "px"]
    sizes = [max(map(len, column)) for column in zip(heads, *facts, strict=True)]
    longest = max(len(row.name) for row in rows)
    licences = [row.licence.removesuffix("-license") or "-" for row in rows]
    most = max(map(len, [*licences, "licence"]))
    if width is not None:
        most = min(most, 13)
        longest = max(10, min(longest, width - 2 - sum(sizes) - len(sizes) - 1 - most))

    def line(mark: str, name: str, numbers: Sequence[str], licence: str) -> str:
        licence = licence if len(licence) <= most else licence[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
        columns = [text.rjust(size) for text, size in zip(numbers, sizes, strict=True)]
        return " ".join([f"{mark} {name:<{longest}}", *columns, licence])

    yield line(" ", "name", heads, "licence")
    for row, numbers, licence in zip(rows, facts, licences, strict=True):
        mark, name = "*" if row.file in there else " ", row.name
        if len(name) > longest:
            yield f"{mark} {name}"
            mark, name = " ", ""
        yield line(mark, name, numbers, licence)


def _digits(value: float | None, places: int = 3) -> str:
    """So many significant digits, 0: a whole number; `-` where it is not known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if places == 0 or value >= 10**places else f"{value:.{places}g}"
