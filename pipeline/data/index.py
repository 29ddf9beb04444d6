"""The index of a packed set as arrays: what is known of each image besides pixels and labels. Torch-free.

Python's strings would take 0.5 kB an image and 3 us to open, in every process that trains. Here a text is
made when it is asked for, and a column is read when it is first used.
"""

from __future__ import annotations

import csv
import functools
import itertools
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline.data.references import ImageRef
from pipeline.errors import DataError
from pipeline.storage.typed import typed

# N images, B bytes of all their texts, D bytes of a digest
Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint8]  # (N, D)
# of index.csv: `part` is that of a given split, `pixels` is the digest in hex
COLUMNS = ("id", "name", "path", "part", "pixels")
PARTS = ("train", "validation", "test")
_TEXTS = ("ids", "names", "paths")
_CHUNK = 1 << 13  # texts at a time


class Texts(Sequence[str]):
    """N texts as their UTF-8 bytes, one after another, and where each ends."""

    def __init__(self, bytes_B: npt.NDArray[np.uint8], ends_N: Array) -> None:
        self.bytes_B, self.ends_N = bytes_B, ends_N

    def __len__(self) -> int:
        return len(self.ends_N)

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # slices are not used
        row = range(len(self))[row]
        start = int(self.ends_N[row - 1]) if row else 0
        return self.bytes_B[start : int(self.ends_N[row])].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), _CHUNK):
            ends = self.ends_N[first : first + _CHUNK].tolist()
            body, offset = self.bytes_B[start : ends[-1]].tobytes(), start
            for end in ends:
                yield body[start - offset : end - offset].decode()
                start = end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list's

    def take(self, rows: Rows | Sequence[int]) -> Texts:
        """The texts of `rows`, in their order, without making them."""
        rows = np.asarray(rows, np.int64)
        ends_N = self.ends_N[rows].astype(np.int64)
        starts_N = np.where(rows > 0, self.ends_N[rows - 1], 0).astype(np.int64)
        new_N = np.cumsum(ends_N - starts_N)
        bytes_B = np.empty(int(new_N[-1]) if len(rows) else 0, np.uint8)
        for first in range(0, len(rows), _CHUNK):
            part = slice(first, first + _CHUNK)
            length_N = ends_N[part] - starts_N[part]
            begin, end = int(new_N[first] - length_N[0]), int(new_N[part][-1])
            shift_N = starts_N[part] - (new_N[part] - length_N)
            bytes_B[begin:end] = self.bytes_B[np.arange(begin, end) + np.repeat(shift_N, length_N)]
        return Texts(bytes_B, new_N)


class Index:
    """The columns of an index; `read` gives the array of a name, and is asked once for each."""

    def __init__(self, read: Callable[[str], Array]) -> None:
        self._read = read

    @classmethod
    def of(cls, images: Iterable[Sequence[str]]) -> Index:
        """Of the COLUMNS of each image: texts, which may come from a generator."""
        joined, lengths = [bytearray() for _ in _TEXTS], [array("q") for _ in _TEXTS]
        parts, digests, left = bytearray(), bytearray(), iter(images)
        while chunk := list(itertools.islice(left, _CHUNK)):
            *columns, part, pixels = zip(*chunk, strict=True)
            for column, body, length_N in zip(columns, joined, lengths, strict=True):
                encoded = [text.encode() for text in column]
                body += b"".join(encoded)
                length_N.extend(map(len, encoded))
            parts.extend(map(PARTS.index, part))
            digests += bytes.fromhex("".join(pixels))
        arrays: dict[str, Array] = {
            "parts": np.frombuffer(parts, np.uint8),
            "pixel_digests": np.frombuffer(digests, np.uint8).reshape(len(parts), -1),
        }
        for name, body, length_N in zip(_TEXTS, joined, lengths, strict=True):
            kind = np.uint32 if len(body) < 1 << 32 else np.uint64
            arrays |= {name: np.frombuffer(body, np.uint8), _ends(name): np.cumsum(length_N, dtype=kind)}
        return cls(arrays.__getitem__)

    @classmethod
    def open(cls, path: Path) -> Index:
        """Of a file that `write` made; a column that cannot be read is a DataError when it is first used."""
        return cls(functools.partial(_column, path))

    @classmethod
    def from_csv(cls, path: Path) -> Index:
        """Of the `index.csv` of a set that was packed before there were arrays."""
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                rows = csv.reader(lines)
                wanted = itemgetter(*map(next(rows).index, COLUMNS))
                return cls.of(map(wanted, rows))
        except (OSError, ValueError, IndexError, StopIteration) as error:  # a path may hold a line's end
            raise _unreadable(path, error) from error

    def __iter__(self) -> Iterator[ImageRef]:
        return map(ImageRef, self.ids, self.names, self.paths)

    def write(self, file: IO[bytes]) -> None:
        """All columns as .npz; equal columns are equal bytes."""
        names = [*_TEXTS, *map(_ends, _TEXTS), "parts", "pixel_digests"]
        arrays: dict[str, Any] = {name: self._read(name) for name in names}
        np.savez(file, **arrays)

    @functools.cached_property
    def ids(self) -> Texts:
        """The id of each image."""
        return self._texts("ids")

    @functools.cached_property
    def names(self) -> Texts:
        """The name of each image in a submission."""
        return self._texts("names")

    @functools.cached_property
    def paths(self) -> Texts:
        """The path of each image in its source."""
        return self._texts("paths")

    @functools.cached_property
    def pixel_digests(self) -> Digests:
        """(N, D) uint8: equal pixels have equal digests."""
        return self._read("pixel_digests")

    def rows_of(self, part: str) -> Rows:
        """The rows of a part of a given split: train, validation or test."""
        return np.flatnonzero(self._read("parts") == PARTS.index(part))

    def _texts(self, name: str) -> Texts:
        return Texts(self._read(name), self._read(_ends(name)))


def last_equal(digests_ND: Digests, others_MD: Digests) -> Rows:
    """(N,) the last row of `others_MD` with the same digest, -1 where there is none.

    Digests are compared by their first 8 bytes as numbers, and those that agree as a whole.
    """
    found_N = np.full(len(digests_ND), -1, np.int64)
    key_N, key_M = _keys(digests_ND), _keys(others_MD)
    row_of = {others_MD[row].tobytes(): row for row in np.flatnonzero(_among(key_M, key_N)).tolist()}
    for row in np.flatnonzero(_among(key_N, key_M)).tolist():
        found_N[row] = row_of.get(digests_ND[row].tobytes(), -1)
    return found_N


def equal_groups(digests_ND: Digests) -> list[list[int]]:
    """The rows of each digest that several images have, by the first of them."""
    key_N = _keys(digests_ND)
    order_N = np.argsort(key_N)
    again_N = key_N[order_N[1:]] == key_N[order_N[:-1]]
    groups: dict[bytes, list[int]] = {}
    for row in np.union1d(order_N[1:][again_N], order_N[:-1][again_N]).tolist():
        groups.setdefault(digests_ND[row].tobytes(), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _keys(digests_ND: Digests) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(digests_ND[:, :8]).view(np.uint64).reshape(len(digests_ND))


def _among(key_N: npt.NDArray[np.uint64], key_M: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """(N,) whether each is among the others; `np.isin` takes ten times as long for millions of random keys."""
    if not len(key_M):
        return np.zeros(len(key_N), bool)
    sorted_M = np.sort(key_M)
    found_N: npt.NDArray[np.bool_] = (
        sorted_M[np.searchsorted(sorted_M, key_N).clip(max=len(key_M) - 1)] == key_N
    )
    return found_N


def _ends(name: str) -> str:
    """The column of where each text of a column ends: 4 bytes each where they suffice, else 8."""
    return f"{name}_ends"


def _column(path: Path, name: str) -> Array:
    try:
        with np.load(path) as file:  # which checks a CRC-32
            column: Array = file[name]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    return column


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot be read ({error}); delete {path.parent} and run `{typed('wrangle')}` again"
    )
