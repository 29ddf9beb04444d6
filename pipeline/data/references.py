"""Which image a reference means: an id, a file name, a path, or an id as a number. Torch- and numpy-free.

A reference with folders means that path: one of the two paths must be the end of the other, by whole
parts. A reference that could mean two images means none, and is refused by whoever asked.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

UNKNOWN, AMBIGUOUS = -1, -2
_SHOWN = 5


class ImageRef(NamedTuple):
    """One image of a source: its id, its name in a submission, and its member in the source."""

    id: str
    name: str
    member: str


class Finder:
    """Finds images by what people call them. Indices are made when a reference first needs them.

    `images` is gone through once for each index, so it must not be a generator.
    """

    def __init__(self, images: Iterable[ImageRef]) -> None:
        self.images = images
        self._beyond: dict[int, str] = {}  # row -> the folders that a reference had above the image's path

    def find(self, reference: str, folder: str = "") -> int:
        """The row of the image, UNKNOWN or AMBIGUOUS.

        `folder` is where the file that holds the reference lies in the images' source, or "": names
        may be relative to it.
        """
        reference = plain(reference)
        if folder:
            row = self._by_path.get(f"{folder}/{reference}", UNKNOWN)
            if row >= 0:
                return row
        if "/" in reference:
            return self._find_path(reference)
        row = _either(self._by_id.get(reference, UNKNOWN), self._by_name.get(reference, UNKNOWN))
        if row == UNKNOWN:
            row = _either(
                self._by_stem.get(reference, UNKNOWN), self._by_folded_name.get(_folded(reference), UNKNOWN)
            )
        if row == UNKNOWN and reference.isdecimal():
            row = self._by_number.get(str(int(reference)), UNKNOWN)
        if row == AMBIGUOUS:  # the path from the source's top is the whole path, so it is clear
            exact = self._by_path.get(reference, UNKNOWN)
            row = exact if exact >= 0 else row
        return row

    def names_one(self, text: str) -> bool:
        """Whether a text is an image's id, name or path; a scan, for a single text."""
        end = "/" + text
        return any(text in image or image.member.endswith(end) for image in self.images)

    @property
    def folders_beyond(self) -> set[str]:
        """The folders above the images' paths that references had and the source lacks."""
        return set(self._beyond.values())

    def candidates(self, reference: str) -> list[str]:
        """Up to a few paths that an ambiguous reference could mean."""
        reference = plain(reference)
        last = reference.rsplit("/", 1)[-1]
        names = {last, _folded(last)}
        number = int(last) if last.isdecimal() else None
        found = []
        for image in self.images:
            name = image.member.rsplit("/", 1)[-1]
            same_number = number is not None and image.id.isdecimal() and int(image.id) == number
            if same_number or names & {name, _folded(name), _stem(name), image.id, image.name}:
                found.append(image.member)
            if len(found) == _SHOWN:
                break
        return found

    def explain(self, ambiguous: Sequence[str]) -> str:
        """A sentence about references that could mean several images."""
        lines = [f"{r!r}: {' or '.join(self.candidates(r))}" for r in list(dict.fromkeys(ambiguous))[:_SHOWN]]
        count = len(set(ambiguous))
        what = "entry does" if count == 1 else "entries do"
        return f"{count} {what} not say which image it means; write more of its path. " + "; ".join(lines)

    def _find_path(self, reference: str) -> int:
        row = self._by_path.get(reference, UNKNOWN)
        if row == UNKNOWN:
            row = self._by_id.get(reference, UNKNOWN)
        if row == UNKNOWN:
            ends = self._by_end(reference.count("/") + 1)
            row = ends.get(_folded(reference), UNKNOWN)
        if row == UNKNOWN:
            row = self._beyond_path(reference)
        return row

    def _beyond_path(self, reference: str) -> int:
        """The image whose whole path is the end of `reference`.

        Two references with other folders above (`train/1.jpg`, `test/1.jpg`) cannot both mean `1.jpg`.
        """
        folded = _folded(reference)
        start = folded.find("/") + 1
        while start:
            row = self._by_folded_path.get(folded[start:], UNKNOWN)
            if row != UNKNOWN:
                above = "/" + folded[: start - 1]
                known = self._beyond.setdefault(row, above)
                return row if known.endswith(above) or above.endswith(known) else AMBIGUOUS
            start = folded.find("/", start) + 1
        return UNKNOWN

    def _index(self, *keys_of: Callable[[ImageRef], str | None]) -> dict[str, int]:
        rows: dict[str, int] = {}
        for row, image in enumerate(self.images):
            for key_of in keys_of:
                key = key_of(image)
                if key is not None and rows.setdefault(key, row) != row:
                    rows[key] = AMBIGUOUS
        return rows

    @functools.cached_property
    def _by_id(self) -> dict[str, int]:
        return self._index(lambda image: image.id)

    @functools.cached_property
    def _by_name(self) -> dict[str, int]:
        return self._index(lambda image: image.name, lambda image: plain(image.member.rsplit("/", 1)[-1]))

    @functools.cached_property
    def _by_stem(self) -> dict[str, int]:
        return self._index(lambda image: _stem(plain(image.member.rsplit("/", 1)[-1])))

    @functools.cached_property
    def _by_folded_name(self) -> dict[str, int]:
        return self._index(lambda image: _folded(plain(image.member.rsplit("/", 1)[-1])))

    @functools.cached_property
    def _by_path(self) -> dict[str, int]:
        return self._index(lambda image: plain(image.member))

    @functools.cached_property
    def _by_folded_path(self) -> dict[str, int]:
        return self._index(
            lambda image: _folded(plain(image.member)), lambda image: _stem(plain(image.member))
        )

    @functools.cached_property
    def _by_number(self) -> dict[str, int]:
        return self._index(lambda image: str(int(image.id)) if image.id.isdecimal() else None)

    @functools.cached_property
    def _ends(self) -> dict[int, dict[str, int]]:
        return {}

    def _by_end(self, parts: int) -> dict[str, int]:
        """Images by the last parts of their paths, with and without the ending."""

        def end(image: ImageRef) -> str | None:
            pieces = plain(image.member).rsplit("/", parts)
            return "/".join(pieces[-parts:]) if len(pieces) >= parts else None

        if parts not in self._ends:
            self._ends[parts] = self._index(
                lambda image: (text := end(image)) and _folded(text),
                lambda image: (text := end(image)) and _stem(text),
            )
        return self._ends[parts]


def plain(reference: str) -> str:
    """A reference in NFC, with `/` between its parts and none before them."""
    if not reference.isascii():
        reference = unicodedata.normalize("NFC", reference)
    if "\\" in reference:
        reference = reference.replace("\\", "/")
    while reference.startswith(("./", "/")):
        reference = reference[reference.index("/") + 1 :]
    return reference


def _either(one: int, other: int) -> int:
    if one == other or other == UNKNOWN:
        return one
    return other if one == UNKNOWN else AMBIGUOUS


def _stem(path: str) -> str:
    """A path without its ending."""
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") + 1 else path


def _folded(path: str) -> str:
    """A path with its ending in small letters."""
    stem = _stem(path)
    return stem + path[len(stem) :].lower()
