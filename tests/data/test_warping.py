"""Training pictures are as sharp as the pictures that are scored, cropped or turned, on both ways to make them."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from pipeline.data import warping
from pipeline.data.augment import Augmentation
from pipeline.data.inputs import to_input
from pipeline.data.prefilter import prefilters
from pipeline.spec import IMAGENET, AugmentSpec

PLAIN = [*((128, 116), (128, 96), (224, 150), (224, 128)), *((256, 224), (256, 112), (224, 64), (90, 90))]
BICUBIC = IMAGENET._replace(interpolation="bicubic")
KINDS = pytest.mark.parametrize("kind", [IMAGENET, BICUBIC], ids=["bilinear", "bicubic"])
WAYS = pytest.mark.parametrize("by_torch", [False, True], ids=["cpu", "torch"])
PHOTOS = Path(os.environ.get("LABELGRID_SHARED", "nowhere")) / "data" / "mirflickr-10k.zip"


def uint8(images_BCHW):
    return (
        torch.from_numpy(images_BCHW.clip(0, 255).round().astype(np.uint8)).permute(0, 2, 3, 1).contiguous()
    )


def white(size, count=2):
    return uint8(np.random.default_rng(0).uniform(0, 255, (count, 3, size, size)))


def pink(size, count=6):
    """As photographs are: amplitude falls with frequency, down to the single pixel."""
    spectrum = np.fft.fft2(np.random.default_rng(1).standard_normal((count, 3, size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    images = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / size)).real
    return uint8(128 + 45 * images / images.std(axis=(2, 3), keepdims=True))


def photos(size, count=8):
    if not PHOTOS.exists():
        pytest.skip("LABELGRID_SHARED is not set: the real images are not here")
    with zipfile.ZipFile(PHOTOS) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:: 9000 // count][:count]
        opened = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
        return torch.from_numpy(np.stack([np.asarray(one.resize((size, size))) for one in opened]))


def pixels(inputs_BCHW):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET[:2])
    return ((inputs_BCHW * std + mean) * 255).numpy().astype(np.float64)


def augmented(images_BHWC, image_px, kind=IMAGENET, **settings):
    """Pixels (B, C, S, S), and the map they were drawn by."""
    every = slice(0, len(images_BHWC))
    augmentation = Augmentation(AugmentSpec.model_validate({"hflip": 0.0, **settings}), 0, 0, [every])
    shown = augmentation(images_BHWC, every, image_px, kind)
    return pixels(shown), augmentation.theta(augmentation.draws_N7)


def weight_at(distance, kind):
    """A triangle, or the cubic of Keys as its two polynomials are printed, with a = -1/2."""
    if kind == IMAGENET:
        return np.maximum(1 - distance, 0)
    near = 3 / 2 * distance**3 - 5 / 2 * distance**2 + 1
    far = -1 / 2 * distance**3 + 5 / 2 * distance**2 - 4 * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def by_filter(image_HWC, theta_23, image_px, kind=IMAGENET):
    """One picture by the filter of scoring's resize, wherever the map leads, and where all of its reach is inside.

    The weights of a source pixel are of its distance along x and along y, in output pixels where it shrinks.
    """
    reach = 1 if kind == IMAGENET else 2
    size = len(image_HWC)
    theta = theta_23.astype(np.float64)
    at = (2 * np.arange(image_px) + 1) / image_px - 1
    across, down = np.meshgrid(at, at)
    taken, inside = [], np.ones((image_px, image_px), bool)
    for row in theta:
        place = (row[0] * across + row[1] * down + row[2] + 1) * size / 2 - 0.5
        width = max(1.0, np.hypot(*row[:2]) * size / image_px)
        far = int(reach * width)
        near = np.floor(place)[..., None].astype(int) + np.arange(-far - 1, far + 3)
        weight = weight_at(np.abs(near - place[..., None]) / width, kind) * ((near >= 0) & (near < size))
        weight /= np.maximum(weight.sum(axis=-1, keepdims=True), 1e-9)
        taken.append((near.clip(0, size - 1), weight))
        inside &= (place >= reach * width + 3) & (place <= size - 4 - reach * width)
    (columns, x), (rows, y) = taken
    image, shown = image_HWC.numpy().astype(np.float64), np.zeros((image_px, image_px, 3))
    for i in range(rows.shape[-1]):
        for j in range(columns.shape[-1]):
            shown += (y[..., i] * x[..., j])[..., None] * image[rows[..., i], columns[..., j]]
    return shown.clip(0, 255).transpose(2, 0, 1), inside


def sharpness(image_CSS, inside_SS):
    """The sum of the squared differences of neighbours."""
    right, below = inside_SS[:, 1:] & inside_SS[:, :-1], inside_SS[1:] & inside_SS[:-1]
    across, down = np.diff(image_CSS, axis=2)[:, right], np.diff(image_CSS, axis=1)[:, below]
    return (across**2).sum() + (down**2).sum()


def fine_detail(image_CSS, inside_SS):
    """The sum of the squares of what lies above half of the highest frequency, in the middle of the picture."""
    rows = np.flatnonzero(inside_SS.all(axis=1) | inside_SS[:, inside_SS.shape[1] // 2])
    side = next(n for n in range(len(rows), 0, -1) if inside_SS[_middle(inside_SS, n)].all())
    part = image_CSS[(slice(None), *_middle(inside_SS, side))]
    window = np.hanning(side)
    power = (
        np.abs(np.fft.fft2((part - part.mean(axis=(1, 2), keepdims=True)) * window * window[:, None])) ** 2
    )
    high = np.abs(np.fft.fftfreq(side)) > 0.25
    return power[:, high | high[:, None]].sum()


def _middle(inside_SS, side):
    start = (len(inside_SS) - side) // 2
    return slice(start, start + side), slice(start, start + side)


def use_torch(monkeypatch, by_torch):
    if by_torch:
        monkeypatch.setattr(warping, "_warp_on_cpu", warping._warp_by_torch)


@KINDS
@pytest.mark.parametrize(("size", "image_px"), [(64, 24), (65, 40), (64, 64), (40, 64)])
def test_the_reference_here_is_torchvision_s_resize(size, image_px, kind):
    images, whole = white(size, 1), np.eye(2, 3, dtype=np.float32)
    way = InterpolationMode(kind.interpolation)
    source = images.permute(0, 3, 1, 2).double()
    expected = reference.resize(source, [image_px, image_px], interpolation=way, antialias=True).clamp(0, 255)
    shown, _ = by_filter(images[0], whole, image_px, kind)
    np.testing.assert_allclose(shown[:, 4:-4, 4:-4], expected[0, :, 4:-4, 4:-4], atol=1e-4)


@pytest.mark.parametrize(("size", "image_px"), [(64, 24), (65, 40), (64, 64), (40, 64)])
def test_what_is_scored_is_pillow_s_bicubic(size, image_px):
    images = white(size) // 2 + 64  # Pillow cuts what overshoots after its first pass too
    shown = pixels(to_input(images, image_px, BICUBIC))
    for one, image in zip(shown, images.numpy(), strict=True):
        expected = Image.fromarray(image).resize((image_px, image_px), Image.Resampling.BICUBIC)
        # Pillow rounds to whole values after each of its two passes
        assert np.abs(one.transpose(1, 2, 0) - np.asarray(expected)).max() < 1.5


@KINDS
@WAYS
@pytest.mark.parametrize(("size", "image_px"), [*PLAIN, (32, 56), (128, 224), (65, 20), (64, 9), (33, 32)])
def test_a_crop_of_the_whole_picture_is_what_is_scored(monkeypatch, by_torch, size, image_px, kind):
    use_torch(monkeypatch, by_torch)
    images = white(size)
    scored = pixels(to_input(images, image_px, kind))
    for settings, expected in (
        ({}, scored),
        ({"hflip": 1.0}, scored[..., ::-1]),
        ({"vflip": 1.0}, scored[:, :, ::-1]),
    ):
        shown, _ = augmented(images, image_px, kind, crop=(1, 1), **settings)
        assert np.abs(shown - expected).max() < 0.02


@KINDS
@WAYS
@pytest.mark.parametrize(("size", "image_px"), [*PLAIN, (64, 100), (65, 20)])
def test_a_crop_is_made_by_the_filter_of_what_is_scored(monkeypatch, by_torch, size, image_px, kind):
    use_torch(monkeypatch, by_torch)
    images = white(size)
    shown, theta = augmented(images, image_px, kind, crop=(0.35, 1), hflip=0.5, crop_ratio=(0.5, 2))
    for one, image, theta_23 in zip(shown, images, theta, strict=True):
        expected, inside = by_filter(image, theta_23, image_px, kind)
        assert np.abs(one - expected).max() < 0.03  # at the edges too: pixels beyond it do not count
        assert abs(sharpness(one, inside) / sharpness(expected, inside) - 1) < 0.001


@pytest.mark.parametrize("pictures", [white, pink, photos])
@pytest.mark.parametrize("settings", [{}, {"crop": (0.5, 1)}, {"crop": (0.3, 0.6), "crop_ratio": (0.5, 2)}])
@pytest.mark.parametrize(
    ("kind", "size", "image_px"),
    [*((IMAGENET, *sizes) for sizes in PLAIN), *((BICUBIC, *sizes) for sizes in (PLAIN[1], PLAIN[-1]))],
)
def test_turned_pictures_are_as_sharp_as_what_is_scored(pictures, settings, size, image_px, kind):
    images = pictures(size)
    shown, theta = augmented(images, image_px, kind, rotate_deg=30.0, **settings)
    found = []
    for one, image, theta_23 in zip(shown, images, theta, strict=True):
        expected, inside = by_filter(image, theta_23, image_px, kind)
        assert inside.sum() > 400
        found.append([[f(one, inside), f(expected, inside)] for f in (sharpness, fine_detail)])
    (sharp, sharp_scored), (fine, fine_scored) = np.sum(found, axis=0)
    assert abs(sharp / sharp_scored - 1) < 0.02
    # a bilinear sample lets through images of low frequencies that a cubic does not: no filter before it helps
    assert abs(fine / fine_scored - 1) < (0.03 if kind == IMAGENET else 0.2)


@KINDS
def test_under_rotation_outside_is_black_and_without_it_the_edge_goes_on(kind):
    bright = torch.full((4, 32, 32, 3), 200, dtype=torch.uint8)
    for image_px in (12, 32, 48):
        cropped, _ = augmented(bright, image_px, kind, crop=(0.6, 1))
        np.testing.assert_allclose(cropped, 200, atol=0.02)
        turned, _ = augmented(bright, image_px, kind, rotate_deg=40.0)
        assert turned[:, :, 0, 0].min() < 5
        assert turned[:, :, -1, -1].min() < 5
        middle = image_px // 2
        np.testing.assert_allclose(turned[:, :, middle, middle], 200, atol=0.02)


@KINDS
@pytest.mark.parametrize("rotate_deg", [0.0, 25.0])
@pytest.mark.parametrize(
    ("size", "image_px"), [(32, 32), (32, 56), (64, 24), (65, 20), (64, 16), (128, 96), (224, 128), (96, 90)]
)
def test_cpu_and_gpu_ways_show_the_same_picture_for_the_same_draw(
    monkeypatch, size, image_px, rotate_deg, kind
):
    settings = {"hflip": 0.5, "vflip": 0.5, "crop": (0.3, 1.0), "rotate_deg": rotate_deg}
    by_threads, _ = augmented(pink(size, 12), image_px, kind, **settings)
    use_torch(monkeypatch, by_torch=True)
    by_torch, _ = augmented(pink(size, 12), image_px, kind, **settings)
    assert np.abs(by_threads - by_torch).max() < 0.02
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_half, _ = augmented(pink(size, 12), image_px, kind, **settings)
    np.testing.assert_array_equal(in_half, by_torch)


def test_colours_are_the_same_under_autocast():
    settings = {"hflip": 0.5, "trivial_augment": True, "brightness": 0.3, "contrast": 0.2, "saturation": 0.2}
    plain, _ = augmented(pink(32, 64), 32, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_half, _ = augmented(pink(32, 64), 32, **settings)
    np.testing.assert_array_equal(in_half, plain)


def test_a_filter_changes_no_plain_picture_and_nothing_where_nothing_shrinks():
    steps = np.geomspace(0.3, 20, 60)[:, None]
    filters = prefilters(steps, "bilinear")[:, 0]
    np.testing.assert_allclose(filters.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(filters, filters[:, ::-1], atol=1e-12)
    middle = filters.shape[1] // 2
    enlarging = filters[steps[:, 0] <= 1]
    assert len(enlarging) > 10
    np.testing.assert_array_equal(np.delete(enlarging, middle, axis=1), 0)
    # at a whole step the filter and a bilinear sample are the triangle itself
    twice, near = prefilters(np.array([[2.0, 1.0]]), "bilinear")[0]
    np.testing.assert_allclose(twice, [0, 0, 0.25, 0.5, 0.25, 0, 0], atol=1e-3)
    np.testing.assert_array_equal(near, [0, 0, 0, 1, 0, 0, 0])


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_a_filter_depends_on_its_own_step_alone(kind):
    one, among = prefilters(np.array([[1.3]]), kind), prefilters(np.array([[1.3], [5.7]]), kind)
    spare = (among.shape[2] - one.shape[2]) // 2
    np.testing.assert_array_equal(among[0, 0, spare:-spare], one[0, 0])
