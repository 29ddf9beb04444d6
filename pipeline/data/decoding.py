"""Decode an image file into upright RGB pixels of the packed size, in wrangle's worker processes. Torch-free."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipeline.data.exif import upright
from pipeline.data.image_files import open_image, refuse_eps
from pipeline.data.images import DARK_BELOW
from pipeline.data.pixel_files import PixelFiles
from pipeline.data.sources import Source, open_source

MAX_PIXELS = 178_956_970  # of one image (13,377 x 13,377); decoded, that is half a gigabyte


@dataclass(frozen=True)
class Preparation:
    """What becomes of every picture: its side in pixels, `squash` or `crop`, the filter, and the range of deep ones.

    The range is (the value that becomes black, the value that becomes white); None takes the high byte.
    `interpolation` is `bilinear` or `bicubic`.
    """

    size_px: int
    resize: str
    range: tuple[float, float] | None = None
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Decoded:
    """The result for a chunk of `count` images: digests of the good ones, (position, reason) of the bad ones.

    Of the good ones also the positions of what is unusual: of a single colour, nearly black, deep (more
    than 8 bits a pixel).
    """

    count: int
    digests: list[bytes] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    dark: list[int] = field(default_factory=list)
    deep: list[int] = field(default_factory=list)


class Decoder:
    """One process's handles on the sources and on the pixel files it writes to."""

    def __init__(self, folder: str, preparation: Preparation) -> None:
        self.preparation = preparation
        self.pixels = PixelFiles(Path(folder), preparation.size_px, writable=True)
        self._sources: dict[str, Source] = {}

    def source(self, path: str) -> Source:
        """The source at `path`, opened once; a DataError where that fails."""
        if path not in self._sources:
            self._sources[path] = open_source(path)
        return self._sources[path]

    def decode(self, first_row: int, path: str, members: Sequence[str]) -> Decoded:
        """Decode `members` of a source and write them from `first_row` on; a bad one leaves its row black."""
        source, side = self.source(path), self.preparation.size_px
        images_NHWC = np.zeros((len(members), side, side, 3), np.uint8)
        found = Decoded(len(members))
        for i, (member, image_HWC) in enumerate(zip(members, images_NHWC, strict=True)):
            try:
                image_HWC[:], deep = _decoded(source.read(member), self.preparation)
            except Exception as error:  # noqa: BLE001 - whatever one file raises, the others are packed
                found.bad.append((i, reason(error)))
                continue
            # finds duplicates, not forgeries; took half the time of blake2b when measured
            found.digests.append(hashlib.sha1(image_HWC.data, usedforsecurity=False).digest())
            if deep:
                found.deep.append(i)
        failed = {i for i, _ in found.bad}
        found.dark.extend(i for i in _dark(images_NHWC) if i not in failed)
        found.constant.extend(i for i in _constant(images_NHWC) if i not in failed)
        self.pixels.write(first_row, images_NHWC)
        return found

    def measure(self, path: str, members: Sequence[str]) -> list[float]:
        """The smallest and largest value of the deep pictures among `members`; empty where none is deep."""
        source = self.source(path)
        ends: list[float] = []
        for member in members:
            try:
                image = open_image(source.read(member))
                if is_deep(image):
                    image.load()
                    values = np.asarray(image)
                    values = values[np.isfinite(values)]
                    ends += [values.min().item(), values.max().item()]
            except Exception:  # noqa: BLE001, S112 - decoding it fails likewise, and says why
                continue
        return [min(ends), max(ends)] if ends else []


_decoder: Decoder | None = None  # of this worker process


def start_worker(folder: str, preparation: Preparation) -> None:
    """Make this process's decoder, once."""
    global _decoder
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns from there on, and refuses twice as many
    warnings.filterwarnings("ignore", module="PIL")  # they name no file
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    _decoder = Decoder(folder, preparation)


def decode_chunk(first_row: int, source: str, members: Sequence[str]) -> Decoded:
    """Decode with this process's decoder."""
    assert _decoder is not None
    return _decoder.decode(first_row, source, members)


def measure_chunk(source: str, members: Sequence[str]) -> list[float]:
    """Measure with this process's decoder."""
    assert _decoder is not None
    return _decoder.measure(source, members)


def decode(body: bytes, preparation: Preparation) -> npt.NDArray[np.uint8]:
    """(size_px, size_px, 3) uint8 of an image file of any mode; raises what Pillow raises.

    `squash` scales both sides to `size_px`; `crop` scales the shorter side to it and keeps the middle.
    """
    return _decoded(body, preparation)[0]


def _decoded(body: bytes, preparation: Preparation) -> tuple[npt.NDArray[np.uint8], bool]:
    image = open_image(body)
    return to_pixels(image, preparation), is_deep(image)


def to_pixels(image: Image.Image, preparation: Preparation) -> npt.NDArray[np.uint8]:
    """Like `decode`, of an image from `Image.open`; one that is already loaded can differ in the last bits."""
    refuse_eps(image)
    side = preparation.size_px
    if image.format == "JPEG":
        # the decoder can halve a large picture at a fraction of the cost; it leaves twice the target size
        # for the filter below
        image.draft(None, (2 * side, 2 * side))
    image.load()  # a PNG may hold its EXIF behind its pixels
    image = _rgb(upright(image), preparation.range)
    if image.size != (side, side):
        box = None
        if preparation.resize == "crop":
            shorter = min(image.size)
            left, top = ((length - shorter) / 2 for length in image.size)
            box = (left, top, left + shorter, top + shorter)
        image = image.resize(
            (side, side), Image.Resampling[preparation.interpolation.upper()], box=box, reducing_gap=2.0
        )
    return np.asarray(image)


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has one band of more than 8 bits; colours of 16 bits come from Pillow as 8."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


# A middle row tells most pictures at a hundredth of the cost.


def _dark(images_NHWC: npt.NDArray[np.uint8]) -> list[int]:
    """The positions of nearly black pictures."""
    likely = np.flatnonzero(images_NHWC[:, images_NHWC.shape[1] // 2].max(axis=(1, 2)) < DARK_BELOW)
    return [i for i in likely.tolist() if images_NHWC[i].max() < DARK_BELOW]


def _constant(images_NHWC: npt.NDArray[np.uint8]) -> list[int]:
    """The positions of pictures of a single colour."""
    middle_NWC = images_NHWC[:, images_NHWC.shape[1] // 2]
    likely = np.flatnonzero((middle_NWC == middle_NWC[:, :1]).all(axis=(1, 2)))
    return [i for i in likely.tolist() if (images_NHWC[i] == images_NHWC[i, 0, 0]).all()]


def reason(error: Exception) -> str:
    """Why an image is set aside, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image file that Pillow knows"
    if isinstance(error, MemoryError):
        return "needs more memory than there is; shrink it"
    text = (str(error).splitlines() or [""])[0]
    if not text or isinstance(
        error, (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)
    ):
        return f"the decoder failed on it ({': '.join(filter(None, (type(error).__name__, text)))})"
    return text


def _rgb(image: Image.Image, ends: tuple[float, float] | None) -> Image.Image:
    """RGB of 8 bits; transparent pixels show white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if is_deep(image):
        return Image.fromarray(_to_8_bits(image, ends)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image, ends: tuple[float, float] | None) -> npt.NDArray[np.uint8]:
    """(H, W) of a deep picture: the high byte of 16 bits, or 0 to 255 between the ends of a range."""
    grey_HW = np.asarray(image)
    if ends is None:
        if image.mode == "F":
            raise ValueError(
                "floating-point pixels have no known range; write data.range: auto, or [low, high]"
            )
        return (grey_HW.clip(0, 65535) >> 8).astype(np.uint8)
    low, high = ends
    scaled_HW = grey_HW.astype(np.float64)
    scaled_HW -= low
    scaled_HW *= 255
    scaled_HW /= high - low
    np.nan_to_num(np.rint(scaled_HW, out=scaled_HW), copy=False)
    return scaled_HW.clip(0, 255).astype(np.uint8)
