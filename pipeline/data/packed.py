"""The packed set: pixels as a few large `.npy` files, labels, an index, and `dataset.json` with their digests."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.layout import INDEX, LABELS, read_dataset
from pipeline.data.pixel_files import PixelFiles
from pipeline.errors import DataError
from pipeline.storage.files import sha256_file

# N images, H W pixels, C channels, K labels


@dataclass(frozen=True, eq=False)
class PackedSet:
    """A packed set opened for reading; its pixels stay on disk until they are asked for."""

    path: Path
    digest: str
    size_px: int
    resize: str
    ids: tuple[str, ...]
    names: tuple[str, ...]
    paths: tuple[str, ...]  # in their sources
    parts: tuple[str, ...]  # of a given split: train, validation or test
    pixel_digests: tuple[str, ...]
    labels: tuple[str, ...]
    labels_NK: npt.NDArray[np.uint8]
    range: tuple[float, float] | None = None
    """What became black and white in pictures of more than 8 bits; None: 0 and 65535."""

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> PackedSet:
        """Open the set at `path`; a DataError names the file that is missing or damaged.

        Every byte is compared with its digest, which also brings the pixels into the page cache; without
        `verify` the pixels are not checked, for callers that do not use them.
        """
        remedy = f"delete {path} and run `make wrangle` again"
        dataset = read_dataset(path)
        if dataset is None:
            raise DataError(f"{path}: not a packed data set of this version; {remedy}")
        for name, expected in dataset["files"].items():
            file = path / name
            try:
                whole = file.stat().st_size == expected["bytes"]
                read = verify or not name.startswith("images-")
                whole = whole and (not read or sha256_file(file) == expected["sha256"])
            except OSError as error:
                raise DataError(f"{file}: cannot be read: {error.strerror}; {remedy}") from error
            if not whole:
                raise DataError(f"{file}: is damaged (it differs from its digest in dataset.json); {remedy}")
        with (path / INDEX).open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return cls(
            path=path,
            digest=dataset["digest"],
            size_px=dataset["size_px"],
            resize=dataset["resize"],
            ids=tuple(row["id"] for row in rows),
            names=tuple(row["name"] for row in rows),
            paths=tuple(row["path"] for row in rows),
            parts=tuple(row["part"] for row in rows),
            pixel_digests=tuple(row["pixels"] for row in rows),
            labels=tuple(dataset["labels"]),
            labels_NK=np.load(path / LABELS),
            range=None if dataset.get("range") is None else (dataset["range"][0], dataset["range"][1]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def gather(self, rows: npt.NDArray[np.int64] | Sequence[int]) -> npt.NDArray[np.uint8]:
        """Pixels of `rows`, in their order: (len(rows), H, W, 3) uint8, a copy."""
        return self._pixels.read(rows)

    @cached_property
    def _pixels(self) -> PixelFiles:
        return PixelFiles(self.path, self.size_px)
