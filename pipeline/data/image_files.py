"""Open the bytes of an image file with Pillow: which formats, and what is not handed to it. Torch-free."""

from __future__ import annotations

import functools
import io
from contextlib import suppress

from PIL import Image, PngImagePlugin

# Pillow runs Ghostscript on EPS, and looks for any format inside IPTC
REFUSED = frozenset({"EPS", "IPTC"})
HEIC_ENDINGS = frozenset((".heic", ".heif"))  # Pillow alone does not know them
_EPS = "an EPS picture, a program that Ghostscript would have to run: convert it to PNG or JPEG"
_HEIC = "a HEIC picture: install pillow-heif, or convert it"
_HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)
_EXIF = b"Exif\0\0"

# of texts and colour profiles once inflated: scanners and editors exceed Pillow's 1 MiB
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20
PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read: Pillow's without `REFUSED`, and HEIF where pillow-heif is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.preinit()  # the common ones first, as Pillow itself asks them
    Image.init()
    return tuple(name for name in Image.ID if name not in REFUSED)


def open_image(body: bytes) -> Image.Image:
    """The picture in the bytes of a file, opened but not decoded; raises what Pillow raises.

    ValueError says what to do about an EPS picture, and about HEIC where pillow-heif is not installed.
    """
    try:
        return Image.open(io.BytesIO(body), formats=formats())
    except Exception:
        if body.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
            raise ValueError(_EPS) from None
        if _is_heic(body) and "HEIF" not in formats():
            raise ValueError(_HEIC) from None
        head, mark, exif = body.partition(_EXIF)
        if not mark or not body.startswith(b"\xff\xd8"):
            raise
    # Pillow looks for the resolution of a JPEG in its EXIF, and an odd one made it fail
    image = Image.open(io.BytesIO(head + bytes(len(mark)) + exif), formats=formats())
    image.info["exif"] = mark + exif[: 1 << 16]
    return image


def refuse_eps(image: Image.Image) -> None:
    """Raise a ValueError for a picture that was opened elsewhere and would be handed to Ghostscript."""
    if image.format in REFUSED:
        raise ValueError(_EPS)


def _is_heic(body: bytes) -> bool:
    return body[4:8] == b"ftyp" and body[8:12] in _HEIC_BRANDS and b"avif" not in body[:64]
