"""Every kind of picture comes out as upright RGB."""

import struct
import subprocess
import sys
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.data import decode_pool, decoding
from pipeline.data.decoding import Preparation, decode, decode_chunk, start_worker
from pipeline.data.pixel_files import PixelFiles
from pipeline.storage import processes
from tests.conftest import ROOT, encoded, jpeg, write_zip

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
    pixels_HWC = decode(encoded(picture, kind), Preparation(16, "squash"))
    assert pixels_HWC.shape == (16, 16, 3)
    assert pixels_HWC.dtype == np.uint8
    np.testing.assert_allclose(colour(pixels_HWC), expected, atol=3)


def test_a_transparent_palette_colour_shows_white():
    picture = Image.new("P", (10, 10), 0)
    picture.putpalette([200, 30, 40])
    np.testing.assert_allclose(
        colour(decode(encoded(picture, "PNG", transparency=0), Preparation(8, "squash"))), (255,) * 3
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
    pixels_HWC = decode(
        encoded(half_and_half((64, 64)), "JPEG", exif=exif, quality=95), Preparation(32, "squash")
    )
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
    assert colour(decode(body, Preparation(30, "crop"))).min() > 250
    assert 80 < colour(decode(body, Preparation(30, "squash"))).mean() < 90


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_filter_is_the_one_that_was_asked_for(interpolation):
    picture_HWC = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    found = decode(
        encoded(Image.fromarray(picture_HWC), "PNG"), Preparation(32, "squash", interpolation=interpolation)
    )
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    wanted = Image.fromarray(picture_HWC).resize((32, 32), filters[interpolation])
    np.testing.assert_array_equal(found, np.asarray(wanted))


def test_shrinking_averages_instead_of_skipping_pixels():
    checks_HW = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels_HWC = decode(encoded(Image.fromarray(checks_HW), "PNG"), Preparation(32, "squash"))
    assert abs(pixels_HWC.astype(int) - 127).max() <= 3


def test_a_large_jpeg_shrunk_by_its_decoder_looks_like_one_shrunk_from_all_its_pixels():
    body = jpeg(5, (1200, 900))
    import io

    reference = Image.open(io.BytesIO(body)).resize((64, 64), Image.Resampling.BILINEAR)
    difference = decode(body, Preparation(64, "squash")).astype(int) - np.asarray(reference)
    assert abs(difference).mean() < 1


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match=r"no known range; write data\.range"):
        decode(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), Preparation(8, "squash"))


def test_colours_of_16_bits_are_read_as_8():
    rows = zlib.compress(b"".join(b"\0" + bytes([200, 1, 30, 2, 40, 3] * 8) for _ in range(8)))
    parts = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")
    chunks = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    body = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    for ends in (None, (0, 100)):
        assert (decode(body, Preparation(8, "squash", ends)) == RED).all()


# ---------------------------------------------------------------- a worker


@pytest.fixture
def worker(tmp_path):
    """What a worker process does first, here."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        start_worker(str(tmp_path), Preparation(16, "squash"))
        yield PixelFiles(tmp_path, 16)
    Image.MAX_IMAGE_PIXELS = limit


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AttributeError("no 'encode'"), "the decoder failed on it (AttributeError: no 'encode')"),
        (IndexError(), "the decoder failed on it (IndexError)"),
        (MemoryError(), "needs more memory than there is; shrink it"),
        (RecursionError("too deep\nreally"), "too deep"),
        (ZeroDivisionError("x / 0"), "the decoder failed on it (ZeroDivisionError: x / 0)"),
        (struct.error("short"), "short"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_one_file_raises_the_others_are_packed(worker, tmp_path, monkeypatch, error, said):
    whole = decoding.to_pixels

    def fails_on_the_small(image, preparation):
        if image.size == (3, 3):
            raise error
        return whole(image, preparation)

    monkeypatch.setattr(decoding, "to_pixels", fails_on_the_small)
    files = {"a.jpg": jpeg(1), "b.jpg": jpeg(2, (3, 3)), "c.jpg": jpeg(3)}
    path = write_zip(tmp_path / "a.zip", files)
    found = decode_chunk(0, str(path), list(files))
    assert found.bad == [(1, said)]
    assert (found.count, len(found.digests), found.dark, found.constant) == (3, 2, [], [])
    np.testing.assert_array_equal(worker.read([2])[0], decode(jpeg(3), Preparation(16, "squash")))


def test_an_interrupt_is_no_fault_of_a_file(worker, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "to_pixels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_chunk(0, str(write_zip(tmp_path / "a.zip", {"a.jpg": jpeg(1)})), ["a.jpg"])


def test_a_worker_reads_several_sources_and_opens_each_once(worker, tmp_path, monkeypatch):
    one, other = (write_zip(tmp_path / f"{i}.zip", {"a.jpg": jpeg(i), "b.jpg": jpeg(9)}) for i in (1, 2))
    opened = []
    open_source = decoding.open_source
    monkeypatch.setattr(decoding, "open_source", lambda path: opened.append(path) or open_source(path))
    for row, path in enumerate((one, other, one)):
        decode_chunk(row, str(path), ["a.jpg"])
    assert opened == [str(one), str(other)]
    for row, seed in enumerate((1, 2, 1)):
        np.testing.assert_array_equal(worker.read([row])[0], decode(jpeg(seed), Preparation(16, "squash")))


def test_a_decoding_process_imports_nothing_of_the_spec():
    """Every worker pays for its imports; the spec's cost 0.2 s each."""
    code = "import sys, pipeline.data.decoding; assert 'pydantic' not in sys.modules, 'the spec'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- on all cores


@pytest.mark.parametrize(("size_px", "images"), [(16, 64), (224, 64), (512, 42), (2048, 2), (9000, 1)])
def test_a_task_holds_few_bytes_of_pixels_and_at_least_one_image(size_px, images):
    files = [("a.zip", str(i)) for i in range(100)] + [("b.zip", "0")]
    chunks = decode_pool._chunks(files, size_px)
    assert [(path, member) for path, members in chunks for member in members] == files
    assert max(len(members) for _, members in chunks) == images
    assert images == 1 or images * 3 * size_px**2 <= 32 << 20


def test_few_tasks_are_under_way_at_a_time_and_results_keep_their_order(tmp_path, monkeypatch):
    waiting, most = set(), []

    class Pool:
        def __init__(self, *_):
            pass

        def submit(self, task, call):
            waiting.add(call)
            most.append(len(waiting))
            return SimpleNamespace(result=lambda: waiting.remove(call) or task(call))

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Pool)
    calls = [(i,) for i in range(1000)]
    found = decode_pool._in_pool(lambda i: 2 * i, calls, tmp_path, Preparation(16, "squash"), 3)
    assert list(found) == [2 * i for i in range(1000)]
    assert max(most) == 12
