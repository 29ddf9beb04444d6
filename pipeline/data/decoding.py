"""Decode an image file into upright RGB pixels of the packed size, in wrangle's worker processes. Torch-free."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from pipeline.data.pixel_files import PixelFiles
from pipeline.data.sources import READ_ERRORS, Source, open_source

MAX_PIXELS = 178_956_970  # of one image (13,377 x 13,377); decoded, that is half a gigabyte

# what Pillow raises on files that are damaged, of no known kind, or absurdly large
DECODE_ERRORS = (*READ_ERRORS, SyntaxError, TypeError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Decoded:
    """The result for a chunk of `count` images: digests of the good ones, (position, reason) of the bad ones."""

    count: int
    digests: list[str]
    bad: list[tuple[int, str]]


class Decoder:
    """One process's handle on the source and on the pixel files it writes to."""

    def __init__(self, folder: str, size_px: int, resize: str) -> None:
        self.sources: dict[str, Source] = {}
        self.pixels = PixelFiles(Path(folder), size_px, writable=True)
        self.size_px, self.resize = size_px, resize

    def __call__(self, first_row: int, source: str, members: Sequence[str]) -> Decoded:
        """Decode `members` and write them from `first_row` on; a bad one leaves its row black."""
        if source not in self.sources:
            self.sources[source] = open_source(source)
        images_NHWC = np.zeros((len(members), self.size_px, self.size_px, 3), np.uint8)
        digests: list[str] = []
        bad: list[tuple[int, str]] = []
        for i, (member, image_HWC) in enumerate(zip(members, images_NHWC, strict=True)):
            try:
                image_HWC[:] = decode(self.sources[source].read(member), self.size_px, self.resize)
            except DECODE_ERRORS as error:
                bad.append((i, _reason(error)))
            else:
                # finds duplicates, not forgeries; took half the time of blake2b when measured
                digests.append(hashlib.sha1(image_HWC.data, usedforsecurity=False).hexdigest())
        self.pixels.write(first_row, images_NHWC)
        return Decoded(len(members), digests, bad)


_decoder: Decoder | None = None  # of this worker process


def start_worker(folder: str, size_px: int, resize: str) -> None:
    """Make this process's decoder, once."""
    global _decoder
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns from there on, and refuses twice as many
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    _decoder = Decoder(folder, size_px, resize)


def decode_chunk(first_row: int, source: str, members: Sequence[str]) -> Decoded:
    """Decode with this process's decoder."""
    assert _decoder is not None
    return _decoder(first_row, source, members)


def decode(body: bytes, size_px: int, resize: str) -> npt.NDArray[np.uint8]:
    """(size_px, size_px, 3) uint8 of an image file of any mode; raises what Pillow raises.

    `squash` scales both sides to `size_px`; `crop` scales the shorter side to it and keeps the middle.
    """
    return to_pixels(Image.open(io.BytesIO(body)), size_px, resize)


def to_pixels(image: Image.Image, size_px: int, resize: str) -> npt.NDArray[np.uint8]:
    """Like `decode`, of an image from `Image.open`; one that is already loaded can differ in the last bits."""
    if image.format == "JPEG":
        # the decoder can halve a large picture at a fraction of the cost; it leaves twice the target size
        # for the filter below
        image.draft(None, (2 * size_px, 2 * size_px))
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # an upright image would only be copied
        image = ImageOps.exif_transpose(image)
    image = _rgb(image)
    if image.size != (size_px, size_px):
        box = None
        if resize == "crop":
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            box = (left, top, left + side, top + side)
        image = image.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return np.asarray(image)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits; transparent pixels show white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # 16 bits a pixel: its high byte
        grey_HW = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey_HW.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the file to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()
    if "cannot identify image file" in str(error):
        return "not an image file that Pillow knows"
    return text[0] if text and text[0] else type(error).__name__
