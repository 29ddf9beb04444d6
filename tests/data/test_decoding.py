"""Every kind of picture comes out as upright RGB."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decoding import decode
from tests.conftest import encoded, jpeg

RED, GREY = (200, 30, 40), 120


def colour(pixels_HWC):
    return pixels_HWC.reshape(-1, 3).mean(axis=0)


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        (Image.new("RGB", (30, 20), RED), "PNG", RED),
        (Image.new("L", (30, 20), GREY), "JPEG", (GREY,) * 3),
        (Image.new("1", (30, 20), 1), "PNG", (255,) * 3),
        (Image.new("CMYK", (30, 20), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.fromarray(np.full((20, 30), GREY * 257, np.uint16)), "PNG", (GREY,) * 3),
        (Image.fromarray(np.full((20, 30), GREY * 257, np.int32)), "TIFF", (GREY,) * 3),
        (Image.new("RGBA", (30, 20), (*RED, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (30, 20), (*RED, 255)), "PNG", RED),
        (Image.new("LA", (30, 20), (GREY, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGB", (30, 20), RED).convert("P"), "GIF", RED),
    ],
    ids=[
        "rgb",
        "grey",
        "bilevel",
        "cmyk",
        "16-bit",
        "32-bit",
        "transparent",
        "opaque",
        "grey-alpha",
        "palette",
    ],
)
def test_modes(picture, kind, expected):
    pixels_HWC = decode(encoded(picture, kind), 16, "squash")
    assert pixels_HWC.shape == (16, 16, 3)
    assert pixels_HWC.dtype == np.uint8
    np.testing.assert_allclose(colour(pixels_HWC), expected, atol=3)


def test_a_transparent_palette_colour_shows_white():
    picture = Image.new("P", (10, 10), 0)
    picture.putpalette([200, 30, 40])
    np.testing.assert_allclose(
        colour(decode(encoded(picture, "PNG", transparency=0), 8, "squash")), (255,) * 3
    )


def half_and_half(size):
    """Left half white, right half black."""
    picture = Image.new("L", size, 0)
    picture.paste(255, (0, 0, size[0] // 2, size[1]))
    return picture


# EXIF orientation -> where the white half is after turning upright
@pytest.mark.parametrize(("orientation", "white"), [(1, "left"), (3, "right"), (6, "top"), (8, "bottom")])
def test_exif_rotation_is_applied(orientation, white):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels_HWC = decode(encoded(half_and_half((64, 64)), "JPEG", exif=exif, quality=95), 32, "squash")
    sides = {
        "left": pixels_HWC[:, :8],
        "right": pixels_HWC[:, -8:],
        "top": pixels_HWC[:8],
        "bottom": pixels_HWC[-8:],
    }
    assert max(sides, key=lambda side: sides[side].mean()) == white


def test_squash_keeps_everything_and_crop_keeps_the_middle():
    wide = Image.new("RGB", (90, 30), "black")
    wide.paste((255, 255, 255), (30, 0, 60, 30))
    body = encoded(wide, "PNG")
    assert colour(decode(body, 30, "crop")).min() > 250
    assert 80 < colour(decode(body, 30, "squash")).mean() < 90


def test_shrinking_averages_instead_of_skipping_pixels():
    checks_HW = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels_HWC = decode(encoded(Image.fromarray(checks_HW), "PNG"), 32, "squash")
    assert abs(pixels_HWC.astype(int) - 127).max() <= 3


def test_a_large_jpeg_shrunk_by_its_decoder_looks_like_one_shrunk_from_all_its_pixels():
    body = jpeg(5, (1200, 900))
    import io

    reference = Image.open(io.BytesIO(body)).resize((64, 64), Image.Resampling.BILINEAR)
    difference = decode(body, 64, "squash").astype(int) - np.asarray(reference)
    assert abs(difference).mean() < 1


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="no known range"):
        decode(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), 8, "squash")
