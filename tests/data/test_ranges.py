"""Pictures of more than 8 bits: which values become black and white, and what is said where none seem to."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode_pool import common_range
from pipeline.data.decoding import Preparation, decode
from pipeline.data.layout import packed_identity
from pipeline.data.packed import PackedSet
from pipeline.data.summary import summary
from pipeline.data.wrangle import wrangle
from tests.conftest import data_spec, encoded, jpeg, write_zip

ROWS = 0, 1, 100, 2048, 4095, 4096, 40_000, 65_535


def grey(values, dtype=np.uint16):
    """A picture of 8 x 8 pixels whose rows have these values."""
    return Image.fromarray(np.repeat(np.array(values, dtype)[:, None], 8, axis=1))


def decoded(picture, ends, kind="TIFF"):
    """The grey of each row."""
    pixels_HWC = decode(encoded(picture, kind), Preparation(8, "squash", ends))
    assert (pixels_HWC == pixels_HWC[:, :1, :1]).all()
    return pixels_HWC[:, 0, 0].tolist()


@pytest.mark.parametrize("ends", [(0, 65_535), (0, 4095), (100.5, 4096), (-5000, 70_000)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_range_spans_black_to_white(dtype, ends):
    low, high = ends
    expected = [min(255, max(0, round(255 * (value - low) / (high - low)))) for value in ROWS]
    assert decoded(grey(ROWS, dtype), ends) == expected


def test_full_is_the_high_byte():
    high_bytes = [value >> 8 for value in ROWS]
    assert decoded(grey(ROWS), None) == high_bytes
    assert decoded(grey(ROWS), None, "PNG") == high_bytes
    assert decoded(grey(ROWS, np.int32), None) == high_bytes
    assert decoded(grey([-1, 65_536, 1 << 30, *ROWS[:5]], np.int32), None)[:3] == [0, 255, 255]


@pytest.mark.parametrize("ends", [None, (0, 4095)])
def test_the_order_of_bytes_changes_nothing(ends):
    little = Image.frombytes("I;16", (8, 8), np.asarray(grey(ROWS)).astype("<u2").tobytes())
    big = Image.frombytes("I;16B", (8, 8), np.asarray(grey(ROWS)).astype(">u2").tobytes())
    files = [encoded(little, "TIFF"), encoded(big, "TIFF"), encoded(little, "PNG"), encoded(big, "PNG")]
    assert files[1][:4] == b"MM\0*"
    first, *others = [decode(body, Preparation(8, "squash", ends)) for body in files]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_range_leaves_8_bits_alone():
    for body in (jpeg(3), encoded(Image.effect_noise((8, 8), 60), "PNG")):
        ranged, plain = (decode(body, Preparation(8, "squash", ends)) for ends in ((0, 10), None))
        np.testing.assert_array_equal(ranged, plain)


def test_floats_that_are_no_numbers_are_black_or_clipped():
    rows = [np.nan, np.inf, -np.inf, 0, 0.5, 1, 2, -1]
    assert decoded(grey(rows, np.float32), (0, 1)) == [0, 255, 0, 0, 128, 255, 255, 0]


def test_turning_a_picture_of_16_bits():
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels_HWC = decode(encoded(grey(ROWS), "PNG", exif=exif), Preparation(8, "squash"))
    assert pixels_HWC[:, 0, 0].tolist() == [value >> 8 for value in reversed(ROWS)]


# ---------------------------------------------------------------- one range for a set


def source(path, pictures):
    """A zip of im1.png, im2.png, ...; the first has the label."""
    bodies = [p if isinstance(p, bytes) else encoded(p, "PNG") for p in pictures]
    files = {f"im{i}.png": body for i, body in enumerate(bodies, 1)}
    return write_zip(path, files | {"annotations/dog.txt": "1\n"})


def pack(data, tmp_path, **options):
    return PackedSet.open(wrangle(data, tmp_path / "data", workers=1, **options))


def report(packed):
    return json.loads((packed.path / "wrangle_report.json").read_text())


def spec(path, **settings):
    return data_spec(path, **({"images": "im{id}.png", "size_px": 8} | settings))


def section_of_test(path):
    return {"source": str(path), "images": "im{id}.png"}


def test_auto_is_one_range_for_all_pictures_of_a_set(tmp_path):
    pictures = [
        grey(range(500, 508)),
        jpeg(1),
        grey(range(1500, 1508)),
        grey(range(2500, 2508)),
        b"no picture",
    ]
    lenient = {"undecodable": 0.5}
    packed = pack(spec(source(tmp_path / "a.zip", pictures), range="auto", set_aside=lenient), tmp_path)
    assert packed.range == (500, 2507)
    firsts = packed.gather(range(4))[:, 0, 0, 0].tolist()
    assert firsts[0] == 0
    assert firsts[2] == round(255 * 1000 / 2007)
    assert firsts[3] == round(255 * 2000 / 2007)
    np.testing.assert_array_equal(packed.gather([1])[0], decode(jpeg(1), Preparation(8, "squash")))


def test_auto_of_8_bits_is_as_full(tmp_path):
    path = source(tmp_path / "a.zip", [jpeg(1), jpeg(2)])
    auto, full = (pack(spec(path, range=name), tmp_path) for name in ("auto", "full"))
    assert auto.range is full.range is None
    np.testing.assert_array_equal(auto.gather([0, 1]), full.gather([0, 1]))


def test_auto_of_a_single_value_is_black_and_no_division_by_zero(tmp_path):
    path = source(tmp_path / "a.zip", [grey([700] * 8), jpeg(1)])
    files = [(str(path), "im1.png"), (str(path), "im2.png")]
    assert common_range(files, tmp_path, 1) == (700, 1400)
    assert pack(spec(path, range="auto"), tmp_path).gather([0]).max() == 0


def test_floats_have_a_range_or_are_set_aside_with_the_remedy(tmp_path):
    rows = [np.linspace(0, 1, 8), np.array([1, np.nan, np.inf, -np.inf, 1, 1, 1, 2])]
    floats = [encoded(grey(values, np.float32), "TIFF") for values in rows]
    path = source(tmp_path / "a.zip", [jpeg(1), *floats])
    lenient = {"undecodable": 1.0}
    full = report(pack(spec(path, set_aside=lenient), tmp_path))
    remedy = "floating-point pixels have no known range; write data.range: auto, or [low, high]"
    assert full["undecodable"]["examples"] == [f"im2.png: {remedy}", f"im3.png: {remedy}"]
    auto = pack(spec(path, range="auto"), tmp_path)
    assert auto.range == (0, 2)
    assert auto.gather([1])[0, :, 0, 0].tolist() == [round(255 * i / 14) for i in range(8)]


def test_test_pictures_get_the_range_of_the_training_pictures(tmp_path):
    train = source(tmp_path / "a.zip", [grey([0] * 7 + [4000]), grey([100] * 8)])
    test = source(tmp_path / "b.zip", [grey([1000] * 8), grey([8000] * 8)])
    packed = pack(spec(train, range="auto", test=section_of_test(test)), tmp_path, test=True)
    assert packed.range == (0, 4000)
    assert packed.gather([0, 1])[:, 0, 0, 0].tolist() == [round(255 / 4), 255]
    data = spec(train, range="auto")
    assert PackedSet.open(wrangle(data, tmp_path / "data")).range == (0, 4000)


def test_the_range_is_part_of_the_identity_and_full_is_as_before(tmp_path):
    one, other = (source(tmp_path / f"{i}.zip", [grey([i] * 8), jpeg(1)]) for i in (1, 2))
    test = section_of_test(source(tmp_path / "t.zip", [grey([5] * 8)]))
    cache = tmp_path / "cache"

    def digest(path, ends=None, **options):
        settings = {} if ends is None else {"range": ends}
        return packed_identity(spec(path, test=test, **settings), cache, **options).digest

    assert digest(one) == digest(one, "full")
    assert digest(one, (0, 4095)) == digest(one, (0.0, 4095.0))
    found = [digest(one), digest(one, "auto"), digest(one, (0, 4095)), digest(one, (0, 4096))]
    assert len(set(found)) == 4
    assert digest(one, test=True) == digest(other, test=True)
    assert digest(one, (0, 4095), test=True) == digest(other, (0, 4095), test=True)
    assert digest(one, "auto", test=True) != digest(other, "auto", test=True)


# ---------------------------------------------------------------- nearly black, of one colour


def test_what_is_nearly_black_or_of_one_colour_is_counted(tmp_path):
    almost = Image.new("RGB", (8, 8), "red")
    almost.putpixel((7, 7), (254, 0, 0))
    pictures = [
        grey(range(4000, 4008)),
        Image.new("RGB", (8, 8), "red"),
        almost,
        b"",
        jpeg(1),
        grey([4095] * 8),
    ]
    dim = Image.new("L", (8, 8), 15)
    dim.putpixel((0, 0), 14)
    bright = Image.new("L", (8, 8), 15)
    bright.putpixel((0, 7), 16)
    path = source(tmp_path / "a.zip", [*pictures, dim, bright])
    lenient = {"undecodable": 0.5}
    found = report(pack(spec(path, set_aside=lenient), tmp_path))
    assert found["constant"] == {"count": 3, "examples": ["im1.png", "im2.png", "im6.png"]}
    assert found["dark"]["examples"] == ["im1.png", "im6.png", "im7.png"]
    assert found["dark"]["count"] == 3
    printed = summary(found)
    assert "unusual: 3 pictures of a single colour, e.g. im1.png\n" in printed
    count = "unusual: 3 nearly black pictures (brightest value below 16), e.g. im1.png"
    assert f"{count}; pictures of 16 bits need data.range: auto\n" in printed


def test_dark_pictures_of_8_bits_have_no_remedy(tmp_path):
    path = source(tmp_path / "a.zip", [Image.new("L", (8, 8), 3), jpeg(1), grey(range(0, 64_000, 8000))])
    found = report(pack(spec(path), tmp_path))
    assert found["dark"]["count"] == 1
    said = "unusual: 1 nearly black pictures (brightest value below 16), e.g. im1.png"
    assert said in summary(found).splitlines()


@pytest.mark.parametrize("ends", ["auto", (0, 4095)])
def test_the_shared_pictures_of_12_bits(shared, tmp_path, ends):
    case = shared / "cases/data/png16_12bit"
    settings = {"images": "im{id}.png", "labels": {"format": "onehot_csv", "file": "l.csv"}, "size_px": 16}
    full = report(pack(data_spec(case, **settings), tmp_path))
    assert full["dark"]["count"] == full["packed"] == 24
    ranged = pack(data_spec(case, range=ends, **settings), tmp_path)
    low, high = ranged.range
    assert 0 <= low < 50
    assert 4000 < high <= 4095
    assert report(ranged)["dark"]["count"] == 0
    pixels_NHWC = ranged.gather(range(24))
    assert pixels_NHWC.min() < 30
    assert pixels_NHWC.max() > 220
