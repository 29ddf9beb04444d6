"""Pixels by row number in a few large `.npy` files; several processes may write different rows at once."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError

# N images, H W pixels, C channels
FILE_BYTES = 4 << 30  # a change needs a new PACK_VERSION: readers rely on it
_HEADER_BYTES = 128  # numpy reserves space for a growing first dimension, so every header is this long
Rows = npt.NDArray[np.int64]


class PixelFiles:
    """Rows of (size_px, size_px, 3) uint8 in `images-000.npy`, `images-001.npy`, ... of a folder.

    Rows are read and written by position, not memory-mapped. A mapping would count as memory of this
    process, and a full disk or a truncated file would kill the process by a signal instead of raising
    an error.
    """

    def __init__(self, folder: Path, size_px: int, *, writable: bool = False) -> None:
        self.folder, self.size_px = folder, size_px
        self._flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self.row_bytes = 3 * size_px**2
        self.rows_per_file = max(1, FILE_BYTES // self.row_bytes)
        self._descriptors: dict[int, int] = {}

    def names(self, rows: int) -> list[str]:
        """The files that hold this number of rows."""
        return [f"images-{i:03d}.npy" for i in range(-(-rows // self.rows_per_file))]

    def write(self, first_row: int, images_NHWC: npt.NDArray[np.uint8]) -> None:
        """Write consecutive rows; raises OSError when the disk does."""
        for row, image_HWC in enumerate(images_NHWC, first_row):
            file, offset = self._place(row)
            body = np.ascontiguousarray(image_HWC).data.cast("B")
            while body:
                written = os.pwrite(self._open(file), body, offset)
                body, offset = body[written:], offset + written

    def read(
        self, rows: Rows | Sequence[int], out_NHWC: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """The pixels of `rows` in their order: (len(rows), H, W, 3). A DataError where a file ends early."""
        rows = np.asarray(rows, np.int64)
        if out_NHWC is None:
            out_NHWC = np.empty((len(rows), self.size_px, self.size_px, 3), np.uint8)
        for image_HWC, row in zip(out_NHWC, rows.tolist(), strict=True):
            file, offset = self._place(row)
            path = self.folder / f"images-{file:03d}.npy"
            try:
                whole = os.preadv(self._open(file), [image_HWC.data], offset) == self.row_bytes
            except OSError as error:  # a disk that fails or was removed
                raise DataError(f"{path}: cannot be read: {error.strerror}; check its disk") from error
            if not whole:
                raise DataError(f"{path}: ends early; it was changed while in use")
        return out_NHWC

    def close_gaps(self, kept: Sequence[int]) -> None:
        """Move the rows `kept` (ascending) together to the front."""
        for new, old in enumerate(kept):
            if new != old:
                self.write(new, self.read([old]))

    def finish(self, rows: int) -> None:
        """Set headers and lengths for `rows` rows and remove further files; nothing is flushed to disk."""
        for path in self.folder.glob("images-*.npy"):
            if path.name not in self.names(rows):
                path.unlink()
        for file, name in enumerate(self.names(rows)):
            inside = min(rows - file * self.rows_per_file, self.rows_per_file)
            header = io.BytesIO()
            shape = (inside, self.size_px, self.size_px, 3)
            np.lib.format.write_array_header_1_0(
                header, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            assert len(header.getvalue()) == _HEADER_BYTES, name
            descriptor = self._open(file)
            os.pwrite(descriptor, header.getvalue(), 0)
            os.ftruncate(descriptor, _HEADER_BYTES + inside * self.row_bytes)

    def _place(self, row: int) -> tuple[int, int]:
        """(file, byte offset) of a row."""
        file, inside = divmod(row, self.rows_per_file)
        return file, _HEADER_BYTES + inside * self.row_bytes

    def _open(self, file: int) -> int:
        if file not in self._descriptors:
            path = self.folder / f"images-{file:03d}.npy"
            descriptor = os.open(path, self._flags, 0o666)
            self._descriptors[file] = descriptor
            weakref.finalize(self, os.close, descriptor)
        return self._descriptors[file]
