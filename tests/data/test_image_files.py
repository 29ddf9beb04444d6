"""Which files are opened, and what becomes of those that Pillow alone would refuse or hand to a program."""

import io
import os
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.data.decoding import Preparation, decode, to_pixels
from pipeline.data.image_files import formats
from tests.conftest import ROOT, encoded

SMALL = Preparation(8, "squash")
RED = (200, 30, 40)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def incompressible(length):
    """A text that stays large in a PNG, which compresses it."""
    return random.Random(1).randbytes(length // 2).hex()


@pytest.mark.parametrize("kind", ["text", "profile"])
def test_a_png_with_two_megabytes_beside_its_pixels_is_read(kind):
    picture = Image.new("RGB", (10, 10), RED)
    options = {"icc_profile": bytes(2_000_000)}
    if kind == "text":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Comment", incompressible(2_000_000), zip=True)
        notes.add_itxt("Notes", "x" * 2_000_000, zip=True)
        options = {"pnginfo": notes}
    pixels_HWC = decode(encoded(picture, "PNG", **options), SMALL)
    assert (pixels_HWC == RED).all()


def test_a_png_whose_text_is_a_bomb_is_not_inflated():
    body = encoded(Image.new("RGB", (10, 10), RED), "PNG")
    text = b"Comment\0\0" + zlib.compress(bytes(100 << 20), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    assert len(chunk) < 200_000
    with pytest.raises(ValueError, match="too large"):
        decode(body[:33] + chunk + body[33:], SMALL)


# ---------------------------------------------------------------- EPS


def in_iptc(body):
    """An IPTC file, whose picture Pillow takes for any format it knows."""

    def part(record, number, content):
        return struct.pack(">BBBH", 0x1C, record, number, len(content)) + content

    sizes = part(3, 20, struct.pack(">I", 10)) + part(3, 30, struct.pack(">I", 10))
    return part(3, 60, b"\1\0") + sizes + part(3, 120, struct.pack(">I", 5)) + part(8, 10, body)


_DECODE = """
import io, sys
from PIL import Image
from pipeline.data.decoding import Preparation, decode, to_pixels
for body in map(bytes.fromhex, sys.stdin.read().split()):
    if sys.argv[1] == "pillow":
        tries = [lambda: Image.open(io.BytesIO(body)).load()]
    else:
        tries = [
            lambda: decode(body, Preparation(8, "squash")),
            lambda: to_pixels(Image.open(io.BytesIO(body)), Preparation(8, "squash")),
        ]
    for one in tries:
        try:
            one()
        except Exception as error:
            print(error)
"""


@pytest.mark.slow
def test_eps_is_never_handed_to_ghostscript(tmp_path):
    ran = tmp_path / "ran"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho run >> {ran}\n")
    program.chmod(0o755)
    dos = struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS
    bodies = [EPS, dos, in_iptc(EPS)]

    def run(who):
        environment = os.environ | {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", _DECODE, who]
        text = " ".join(body.hex() for body in bodies)
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("labelgrid")
    assert not ran.exists()
    assert said.count("an EPS picture, a program that Ghostscript would have to run") == 5, said
    run("pillow")
    assert ran.exists()  # the files are such that Pillow alone runs it


def test_eps_is_not_among_the_formats_and_the_others_are():
    Image.init()
    assert {"EPS", "IPTC"} == set(Image.OPEN) - set(formats())
    assert {"JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"} <= set(formats())


# ---------------------------------------------------------------- HEIC


def box(kind, content):
    return struct.pack(">I", 8 + len(content)) + kind + content


@pytest.mark.skipif("HEIF" in formats(), reason="pillow-heif is installed")
@pytest.mark.parametrize("brand", [b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"])
def test_a_heic_picture_says_what_it_needs(brand):
    head = box(b"ftyp", brand + bytes(4) + b"mif1" + b"heic") + box(b"meta", bytes(200))
    with pytest.raises(ValueError, match=r"^a HEIC picture: install pillow-heif, or convert it$"):
        decode(head, SMALL)


def test_a_damaged_avif_is_not_called_a_heic_picture():
    head = box(b"ftyp", b"mif1" + bytes(4) + b"avif" + b"mif1") + bytes(200)
    with pytest.raises(Exception, match=r"^(?!.*HEIC)"):
        decode(head, SMALL)


def test_a_heic_picture_is_read_upright_where_pillow_heif_is():
    pillow_heif = pytest.importorskip("pillow_heif")
    stored = Image.new("RGB", (64, 32), "black")
    stored.paste(RED, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pillow_heif.from_pillow(stored).save(buffer, quality=95, exif=exif.tobytes())
    pixels_HWC = decode(buffer.getvalue(), SMALL).astype(int)
    assert abs(pixels_HWC[:3] - RED).max() < 12
    assert pixels_HWC[5:].max() < 12


# ---------------------------------------------------------------- pictures opened elsewhere


def test_a_picture_opened_elsewhere_comes_out_alike():
    exif = Image.Exif()
    exif[0x0112] = 3
    body = encoded(Image.effect_noise((40, 30), 80), "PNG", exif=exif)
    again = to_pixels(Image.open(io.BytesIO(body)), SMALL)
    np.testing.assert_array_equal(again, decode(body, SMALL))
