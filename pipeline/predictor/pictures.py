"""Pictures of every kind that an application has, as the packed pixels of a data set. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.decoding import Preparation, decode, reason, to_pixels
from pipeline.errors import DataError
from pipeline.storage.files import near_names

# H W pixels, C channels
Picture: TypeAlias = "str | PathLike[str] | bytes | IO[bytes] | Image.Image | npt.NDArray[np.generic]"
_KINDS = "a path, bytes, an open binary file, a Pillow image or a numpy array (H, W, 3) of uint8"


def packed_pixels(
    picture: Picture, preparations: Sequence[Preparation], name: str = ""
) -> list[npt.NDArray[np.uint8]]:
    """The pixels (size_px, size_px, 3) of a picture in each preparation; the picture is left as it is.

    What is a file, or a Pillow image that was opened and not loaded yet, is decoded as wrangle decodes it. Raises
    DataError with the name where it cannot be, FileNotFoundError or IsADirectoryError where there is no such file,
    TypeError for something that is no picture.
    """
    name = name or (str(picture) if isinstance(picture, str | PathLike) else "the picture")
    if isinstance(picture, str | PathLike):
        if not Path(picture).exists():
            raise FileNotFoundError(f"{picture}: there is no such picture{near_names(Path(picture))}")
        if Path(picture).is_dir():
            raise IsADirectoryError(f"{picture}: is a folder; write model.folder({str(picture)!r})")
        with _naming(name):
            picture = Path(picture).read_bytes()
    if isinstance(picture, np.ndarray):
        picture = _of_array(picture, name)
    elif hasattr(picture, "read"):
        with _naming(name):
            picture = picture.read()
    if isinstance(picture, Image.Image):
        picture = _file_of(picture) or picture
    with _naming(name):
        if isinstance(picture, Image.Image):
            picture.load()
            # a copy, for turning it upright and the like may change it
            return [to_pixels(picture.copy(), preparation) for preparation in preparations]
        if isinstance(picture, bytes | bytearray | memoryview):
            return [decode(bytes(picture), preparation) for preparation in preparations]
    raise TypeError(f"{name}: is of {type(picture).__name__}; a picture is {_KINDS}")


def is_several(pictures: object) -> TypeGuard[Iterable[Picture]]:
    """Whether this holds pictures, instead of being one."""
    one = isinstance(
        pictures, str | PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray
    ) or hasattr(pictures, "read")
    return not one and hasattr(pictures, "__iter__")


def _file_of(image: Image.Image) -> bytes | None:
    """The bytes of the file that an image was opened from, while it is not loaded; its position stays."""
    file = getattr(image, "fp", None)
    is_first = getattr(image, "tell", int)() == 0  # of the frames of a TIFF or GIF
    if file is None or not is_first or not getattr(image, "tile", None) or not file.seekable():
        return None
    position = file.tell()
    file.seek(0)
    body = file.read()
    file.seek(position)
    return bytes(body)


def _of_array(array: npt.NDArray[np.generic], name: str) -> Image.Image:
    """An image of an array as Pillow and OpenCV's users have them: rows of pixels, RGB."""
    shape = " x ".join(map(str, array.shape))
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        raise TypeError(
            f"{name}: is an array of {shape}, channels first; write array.transpose(1, 2, 0), which is (H, W, C)"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    is_rgb = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    if array.size and (is_rgb or (array.ndim == 2 and array.dtype in (np.uint8, np.uint16))):
        return Image.fromarray(np.ascontiguousarray(array))
    raise TypeError(
        f"{name}: is an array of {shape} of {array.dtype}; write uint8 values from 0 to 255 as (H, W, 3) RGB, or "
        "(H, W) for grey"
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Whatever reading one picture raises becomes a DataError with its name."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{name}: cannot be decoded: {reason(error)}") from error
