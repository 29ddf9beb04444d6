"""Rows of an array in an `.npz`, some at a time, for arrays that memory should not hold as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npz_rows(archive: ZipFile, name: str, rows: int) -> Iterator[npt.NDArray[Any]]:
    """The array `name` of an open `.npz`, at most `rows` of its rows at a time, in their order.

    What it holds is compared with its CRC at the end. Raises KeyError where there is no such array, and
    ValueError, EOFError or BadZipFile where it is damaged, or not stored row by row.
    """
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{archive.filename}: {name} has the unknown version {version}")
        (length, *rest), by_columns, dtype = _HEADERS[version](file)
        if by_columns or dtype.hasobject:
            raise ValueError(f"{archive.filename}: {name} is not stored row by row")
        row_bytes = math.prod(rest) * dtype.itemsize
        for start in range(0, length, rows):
            count = min(rows, length - start)
            body = file.read(count * row_bytes)
            if len(body) != count * row_bytes:
                raise EOFError(f"{archive.filename}: {name} is cut off")
            yield np.frombuffer(body, dtype).reshape(count, *rest)
