"""The orientation of a picture, the one thing that is read from its EXIF. Torch-free."""

from __future__ import annotations

import re
import struct

from PIL import Image

_ORIENTATION = 0x0112
_INTEGERS = {3: "H", 4: "L", 8: "h", 9: "l"}  # EXIF type -> struct's
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """The loaded picture turned as its orientation says; one without a readable orientation is upright.

    Pillow's own `exif_transpose` writes the other fields again, and fails on odd ones.
    """
    if image.format == "TIFF":  # there the tag is one of the picture's own, and Pillow has turned it
        return image
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8, from EXIF, else from XMP, else 1 (upright)."""
    found = None
    exif = image.info.get("exif")
    as_text = image.info.get("Raw profile type exif")  # of PNGs that ImageMagick wrote
    if isinstance(exif, bytes):
        found = exif_orientation(exif)
    elif isinstance(as_text, str):
        found = exif_orientation(_from_hex(as_text))
    if found is not None:
        return found
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    match = _IN_XMP.search(xmp.encode() if isinstance(xmp, str) else xmp or b"")
    return int(match[1]) if match else 1


def exif_orientation(exif: bytes) -> int | None:
    """The number under the tag in the first directory; None where there is none, or it cannot be read."""
    exif = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "L", exif, 4)
        (fields,) = struct.unpack_from(order + "H", exif, start)
        for place in range(start + 2, start + 2 + 12 * fields, 12):
            tag, kind, count = struct.unpack_from(order + "HHL", exif, place)
            if tag == _ORIENTATION and kind in _INTEGERS and count == 1:
                return int(struct.unpack_from(order + _INTEGERS[kind], exif, place + 8)[0])
    except struct.error:  # it ends before its directory does
        pass
    return None


def _from_hex(text: str) -> bytes:
    """The bytes of a text profile: three lines of heading, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""
