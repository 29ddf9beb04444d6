"""The packed set: pixels as a few large `.npy` files, labels, an index, and `dataset.json` with their digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.index import Index, Texts
from pipeline.data.layout import INDEX, INDEX_CSV, LABELS, read_dataset
from pipeline.data.pixel_files import PixelFiles
from pipeline.data.verified import Check, verify_files
from pipeline.errors import DataError
from pipeline.storage.typed import typed

# N images, H W pixels, C channels, K labels


@dataclass(frozen=True, eq=False)
class PackedSet:
    """A packed set opened for reading; its pixels stay on disk until they are asked for."""

    path: Path
    digest: str
    size_px: int
    resize: str
    index: Index
    labels: tuple[str, ...]
    labels_NK: npt.NDArray[np.uint8]
    range: tuple[float, float] | None = None
    """What became black and white in pictures of more than 8 bits; None: 0 and 65535."""
    interpolation: str = "bilinear"
    """By what pictures were resized."""

    @classmethod
    def open(cls, path: Path, *, verify: bool = True, pixels: Check = "once") -> PackedSet:
        """Open the set at `path`; a DataError names the file that is missing or damaged.

        Every file is compared with its digest; `pixels` says when those of pixels (and the index for people) are
        read for that (`verify_files`). Without `verify` their sizes alone are compared, for callers that do not use
        them.
        """
        dataset = read_dataset(path)
        if dataset is None:
            raise DataError(
                f"{path}: not a packed data set of this version; delete {path} and run `{typed('wrangle')}` again"
            )
        files = dataset["files"]
        verify_files(path, files, pixels if verify else "size")
        return cls(
            path=path,
            digest=dataset["digest"],
            size_px=dataset["size_px"],
            resize=dataset["resize"],
            index=Index.open(path / INDEX) if INDEX in files else Index.from_csv(path / INDEX_CSV),
            labels=tuple(dataset["labels"]),
            labels_NK=np.load(path / LABELS),
            range=None if dataset.get("range") is None else (dataset["range"][0], dataset["range"][1]),
            interpolation=dataset.get("interpolation", "bilinear"),
        )

    def __len__(self) -> int:
        return len(self.labels_NK)

    @property
    def ids(self) -> Texts:
        """The id of each image."""
        return self.index.ids

    @property
    def names(self) -> Texts:
        """The name of each image in a submission."""
        return self.index.names

    @property
    def paths(self) -> Texts:
        """The path of each image in its source."""
        return self.index.paths

    def gather(
        self, rows: npt.NDArray[np.int64] | Sequence[int], out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Pixels of `rows`, in their order: (len(rows), H, W, 3) uint8, a copy, in `out` where that is given."""
        return self._pixels.read(rows, out)

    @cached_property
    def _pixels(self) -> PixelFiles:
        return PixelFiles(self.path, self.size_px)
