"""Only the orientation is read from EXIF: whatever else is in it, a sound picture comes out upright."""

import io
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from pipeline.data.decoding import Preparation, decode
from tests.conftest import encoded

AS_IT_IS = Preparation(32, "squash")
ORIENTATION = 0x0112
# where each corner of the stored picture goes: the EXIF standard's table, by numpy instead of Pillow
UPRIGHT = {
    1: lambda pixels_HWC: pixels_HWC,
    2: lambda pixels_HWC: pixels_HWC[:, ::-1],
    3: lambda pixels_HWC: pixels_HWC[::-1, ::-1],
    4: lambda pixels_HWC: pixels_HWC[::-1],
    5: lambda pixels_HWC: pixels_HWC.swapaxes(0, 1),
    6: lambda pixels_HWC: pixels_HWC[::-1].swapaxes(0, 1),
    7: lambda pixels_HWC: pixels_HWC[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels_HWC: pixels_HWC[:, ::-1].swapaxes(0, 1),
}
# Pillow warns of what it cannot read, where it reads it
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def stored(size=(32, 32)):
    """A picture that differs under every turn and flip."""
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize(size, Image.Resampling.NEAREST)


def exif_block(entries, order="<", ahead=b"Exif\0\0"):
    """An EXIF block of (tag, type, count, value or offset as four bytes), which may lie."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    rows = b"".join(struct.pack(order + "HHL", *entry[:3]) + entry[3] for entry in entries)
    return ahead + head + struct.pack(order + "H", len(entries)) + rows + bytes(4)


def tagged(orientation, order="<"):
    return (ORIENTATION, 3, 1, struct.pack(order + "HH", orientation, 0))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_comes_out_upright(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    body = encoded(stored(), kind, exif=exif, **options)
    plain_HWC = decode(encoded(stored(), kind, **options), AS_IT_IS)
    np.testing.assert_array_equal(decode(body, AS_IT_IS), UPRIGHT[orientation](plain_HWC))


@pytest.mark.parametrize("name", ["exif-make-rational.jpg", "exif-software-rational.jpg"])
def test_photographs_with_text_fields_that_hold_a_fraction(shared, name):
    path = shared / "cases/photos" / name
    with Image.open(path) as image:
        stored_HWC = np.asarray(image)
    preparation = Preparation(16, "squash")
    upright = Image.fromarray(np.ascontiguousarray(UPRIGHT[6](stored_HWC)))
    expected_HWC = upright.resize((16, 16), Image.Resampling.BILINEAR, reducing_gap=2.0)
    np.testing.assert_array_equal(decode(path.read_bytes(), preparation), np.asarray(expected_HWC))


@pytest.mark.parametrize(
    "exif",
    [
        exif_block([(0x011A, 2, 2, b"7\0\0\0"), tagged(6), (0x0128, 3, 1, b"\2\0\0\0")]),
        exif_block([(0x010F, 2, 4_000_000_000, b"\1\0\0\0"), tagged(6)]),
        exif_block([(0x8769, 4, 1, b"\xff\xff\xff\xff"), tagged(6)]),
        exif_block([(0x0001, 99, 1, b"\0\0\0\0"), tagged(6)]),
        exif_block([tagged(6), (0x0131, 2, 9, b"\0\0\0\0")])[:-10],
        exif_block([tagged(6)], ahead=b"Exif\0\0Exif\0\0"),
    ],
    ids=[
        "resolution as text",
        "a text longer than the file",
        "a pointer to nowhere",
        "an unknown type",
        "cut after the tag",
        "marked twice",
    ],
)
def test_odd_fields_beside_the_orientation_change_nothing(exif):
    body = encoded(stored(), "JPEG", exif=exif)
    plain_HWC = decode(encoded(stored(), "JPEG"), AS_IT_IS)
    np.testing.assert_array_equal(decode(body, AS_IT_IS), UPRIGHT[6](plain_HWC))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II",
        b"Exif\0\0no TIFF at all",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        exif_block([tagged(0)]),
        exif_block([tagged(9)]),
        exif_block([(ORIENTATION, 2, 2, b"6\0\0\0")]),
        exif_block([(ORIENTATION, 3, 0, b"\6\0\0\0")]),
        exif_block([(ORIENTATION, 5, 1, b"\0\0\0\0")]),
    ],
)
def test_exif_that_cannot_be_read_counts_as_upright(exif):
    body = encoded(stored(), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(body, AS_IT_IS), decode(encoded(stored(), "JPEG"), AS_IT_IS))


def test_the_orientation_of_xmp_counts_where_exif_has_none():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="8"/></x:xmpmeta>'
    plain_HWC = decode(encoded(stored(), "JPEG"), AS_IT_IS)
    alone = encoded(stored(), "JPEG", xmp=xmp)
    np.testing.assert_array_equal(decode(alone, AS_IT_IS), UPRIGHT[8](plain_HWC))
    both = encoded(stored(), "JPEG", xmp=xmp, exif=exif_block([tagged(3)]))
    np.testing.assert_array_equal(decode(both, AS_IT_IS), UPRIGHT[3](plain_HWC))


def test_a_tiff_with_a_text_field_that_holds_a_fraction():
    fields = TiffImagePlugin.ImageFileDirectory_v2()
    fields.tagtype[0x010F] = 5
    fields[0x010F] = TiffImagePlugin.IFDRational(5, 1)
    fields[ORIENTATION] = 6
    body = encoded(stored(), "TIFF", tiffinfo=fields)
    assert Image.open(io.BytesIO(body)).tag_v2[0x010F] == 5
    np.testing.assert_array_equal(decode(body, AS_IT_IS), UPRIGHT[6](np.asarray(stored())))


fields = st.tuples(
    st.integers(0, 0xFFFF).filter(lambda tag: tag != ORIENTATION)
    | st.sampled_from([0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x8769, 0x8825, 0xA005, 0x927C]),
    st.integers(0, 17) | st.integers(0, 0xFFFF),
    st.integers(0, 9) | st.integers(0, 0xFFFF_FFFF),
    st.binary(min_size=4, max_size=4) | st.integers(0, 120).map(lambda n: struct.pack("<L", n)),
)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@example([], [], None, "<", b"")
@given(
    before=st.lists(fields, max_size=5),
    after=st.lists(fields, max_size=5),
    orientation=st.none() | st.integers(1, 8),
    order=st.sampled_from("<>"),
    tail=st.binary(max_size=60),
)
def test_any_fields_around_it(kind, before, after, orientation, order, tail):
    middle = [] if orientation is None else [tagged(orientation, order)]
    exif = exif_block([*before, *middle, *after], order) + tail
    options = {"lossless": True} if kind == "WEBP" else {}
    found_HWC = decode(encoded(stored(), kind, exif=exif, **options), AS_IT_IS)
    plain_HWC = decode(encoded(stored(), kind, **options), AS_IT_IS)
    np.testing.assert_array_equal(found_HWC, UPRIGHT[orientation or 1](plain_HWC))


@pytest.mark.parametrize("order", "<>")
@given(
    changes=st.lists(st.tuples(st.integers(0, 51), st.integers(0, 255)), max_size=4), end=st.integers(0, 52)
)
def test_any_damage_of_a_real_block_leaves_one_of_the_eight_pictures(order, changes, end):
    fraction = struct.pack(order + "LL", 72, 1)
    offset = struct.pack(order + "L", 38)
    real = bytearray(exif_block([tagged(6, order), (0x011A, 5, 1, offset)], order) + fraction)
    assert len(real) == 52
    for place, value in changes:
        real[place] = value
    damaged = b"Exif\0\0" + bytes(real[6:end])  # what does not begin so is no EXIF
    found_HWC = decode(encoded(stored(), "JPEG", exif=damaged), AS_IT_IS)
    plain_HWC = decode(encoded(stored(), "JPEG"), AS_IT_IS)
    assert any((found_HWC == turn(plain_HWC)).all() for turn in UPRIGHT.values())
