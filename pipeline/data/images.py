"""Which files of a source are its images: known by their paths, in natural order. Torch- and numpy-free."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.references import AMBIGUOUS, Finder, ImageRef
from pipeline.data.sources import Source, is_hidden, read_list
from pipeline.errors import DataError

# the endings that `{id}.*` takes, and that make a file an image which the pattern left out
IMAGE_ENDINGS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic",
    ".heif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".dib", ".pcx", ".ico",
})  # fmt: skip
DARK_BELOW = 16  # of 255: the brightest value of a nearly black image is below it


@dataclass(frozen=True)
class Images:
    """The images a section asks for, and what was found beside them."""

    chosen: list[ImageRef]
    matched: list[ImageRef]  # by the name pattern; more than `chosen` where there is an image list
    unlisted: list[str] = field(default_factory=list)  # entries of the image list that name no image
    unmatched: list[str] = field(default_factory=list)  # image files that the name pattern leaves out
    notes: list[str] = field(default_factory=list)


def list_images(source: Source, pattern: str, image_list: str | None = None, key: str = "data") -> Images:
    """The images of a source in natural order (im2 before im10), or in the order of `image_list`.

    `key` is the section of the spec that messages name. Raises DataError where nothing matches or two
    files have one name.
    """
    matches = list(_Pattern(pattern).matches(source.members))
    if not matches:
        raise DataError(_nothing_matches(source, pattern, key))
    for _, _, member in matches:
        try:
            member.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{source.path}: the file name {member!r} is not UTF-8; rename it") from error
    images = sorted(_named(source, _Pattern(pattern), matches), key=lambda image: natural_key(image.id))
    taken = {member for _, _, member in matches}
    unmatched = [m for m in source.members if m not in taken and is_image(m)]
    notes = []
    deeper = [member for _, spans, member in matches if spans]
    if 0 < len(deeper) < len(matches):
        notes.append(f"{len(deeper)} images lie in deeper folders than the others, e.g. {deeper[0]}")
    if image_list is None:
        return Images(images, images, [], unmatched, notes)
    rows, unlisted = _listed(image_list, images, key)
    return Images([images[row] for row in rows], images, unlisted, unmatched, notes)


def is_image(member: str) -> bool:
    """Whether a file's name ends like an image's, and is not hidden."""
    dot = member.rfind(".")
    return dot >= 0 and member[dot:].lower() in IMAGE_ENDINGS and not is_hidden(member)


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sorts digits as numbers: 2 before 10."""
    if text.isdecimal():
        return [(0, int(text))]
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text) if part]


# ---------------------------------------------------------------- the name pattern


class _Pattern:
    """A name pattern. Folders above those it names are free; `{id}` may span folders where it begins a part."""

    def __init__(self, pattern: str) -> None:
        before, after = pattern.split("{id}")
        self.any_ending = after == ".*"
        self.id_in_name = "/" not in after
        stem, dot, last = after.rpartition(".")
        tail = f"{re.escape(stem)}\\.(?i:{re.escape(last)})" if dot else re.escape(after)
        if self.any_ending:
            tail = r"\.\w+"
        self.short = re.compile(f"(?:.*/)?{re.escape(before)}([^/]+){tail}", re.DOTALL)
        spans = not before or before.endswith("/")
        self.spanned = re.compile(f"(?:.*?/)??{re.escape(before)}(.+){tail}", re.DOTALL) if spans else None

    def matches(self, members: Sequence[str]) -> Iterator[tuple[str, bool, str]]:
        """(id, whether it spans folders, member) of every image; the id is as short as it can be."""
        for member in members:
            if self.any_ending and not is_image(member):
                continue
            match = self.short.fullmatch(member) or (self.spanned and self.spanned.fullmatch(member))
            if match and not is_hidden(member):
                yield match[1], match.re is self.spanned, member

    def long_id(self, member: str) -> str:
        """The id with all folders that the pattern leaves open."""
        match = (self.spanned or self.short).fullmatch(member)
        return match[1] if match else member


def _named(source: Source, pattern: _Pattern, matches: Sequence[tuple[str, bool, str]]) -> Iterator[ImageRef]:
    """Ids as short as they can be for all images to differ, and names likewise; both in NFC."""
    members = [member for _, _, member in matches]
    ids = _first_distinct(
        [
            lambda: [short for short, _, _ in matches],
            lambda: [pattern.long_id(member) for member in members],
            lambda: [_stem(member) for member in members],
            lambda: members,
        ]
    )
    if ids is None:
        plain = Counter(map(_nfc, members))
        same = [member for member in members if plain[_nfc(member)] > 1]
        raise DataError(
            f"{source.path}: {same[0]!r} and {same[1]!r} are one name in two Unicode forms; rename one"
        )
    names = ids
    if pattern.id_in_name:
        names = _first_distinct([lambda: [m.rsplit("/", 1)[-1] for m in members], lambda: members]) or ids
    for found, name, member in zip(ids, names, members, strict=True):
        yield ImageRef(found, name, member)


def _first_distinct(choices: Sequence[Callable[[], Sequence[str]]]) -> list[str] | None:
    for choice in choices:
        texts = [_nfc(text) for text in choice()]
        if len(set(texts)) == len(texts):
            return texts
    return None


def _stem(member: str) -> str:
    dot = member.rfind(".")
    return member[:dot] if dot > member.rfind("/") + 1 else member


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _nothing_matches(source: Source, pattern: str, key: str) -> str:
    files = [member for member in source.members if is_image(member)]
    if not files:
        some = ", ".join(sorted(source.members)[:3]) or "nothing"
        return f"{source.path}: no file is named {pattern!r}, and none is an image; it holds {some}"
    patterns = Counter(f"{m.rpartition('/')[0]}/{{id}}.{m.rpartition('.')[2]}".lstrip("/") for m in files)
    likely = patterns.most_common(1)[0][0]
    some = ", ".join(sorted(files, key=natural_key)[:3])
    return (
        f"{source.path}: no file is named {pattern!r}; correct {key}.images (the images are called {some}, ...: "
        f"{likely!r} matches {patterns[likely]} of {len(files)})"
    )


# ---------------------------------------------------------------- the image list


def _listed(image_list: str, images: Sequence[ImageRef], key: str) -> tuple[list[int], list[str]]:
    """The rows of the listed images, each once, and the entries that name none."""
    references = read_list(Path(image_list))
    if not references:
        raise DataError(
            f"{image_list}: holds no entry; write an id or file name a line, or {key}.image_list: null"
        )
    finder = Finder(images)
    rows = [finder.find(reference) for reference in references]
    unclear = [reference for reference, row in zip(references, rows, strict=True) if row == AMBIGUOUS]
    if unclear:
        raise DataError(f"{image_list}: {finder.explain(unclear)}")
    chosen = dict.fromkeys(row for row in rows if row >= 0)
    if not chosen:
        some = ", ".join(image.name for image in images[:3])
        raise DataError(
            f"{image_list}: none of its {len(references)} entries names an image: it has {references[0]!r}, "
            f"images are called {some}; correct {key}.image_list or {key}.images"
        )
    return list(chosen), [reference for reference, row in zip(references, rows, strict=True) if row < 0]
