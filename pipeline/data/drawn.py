"""The drawn multi-label demo set: shapes, colours and fills, in the file layout of MIRFLICKR.

A thing in a picture has a shape, a colour and a fill; some of each are labels, the others are
distractors. About half of the pictures show distractors only, and so have no label.
"""

# H W pixels of the canvas, P points of an outline

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

from pipeline.progress import report
from pipeline.seeding import seeded
from pipeline.storage.files import atomic_write

Outline = npt.NDArray[np.float64]  # (P, 2), x and y

VERSION = 1  # stored in each archive; raise it when the drawings change
LABELLED_SHARE = 0.5
OVERSAMPLE = 2  # drawn larger and averaged down, for smooth edges

# name -> weight; names in LABELS are labels, the others distractors
SHAPES: dict[str, float] = {
    "circle": 32, "square": 14, "triangle": 10, "star": 7, "ring": 5, "heart": 3, "blob": 9, "bar": 7, "crescent": 7,
}  # fmt: skip
COLOURS: dict[str, float] = {
    "red": 30, "blue": 17, "yellow": 10, "green": 5, "violet": 2.5, "white": 14, "charcoal": 14, "sand": 14,
}  # fmt: skip
FILLS: dict[str, float] = {"stripes": 13, "dots": 6, "checker": 3, "plain": 80}
DISTRACTORS = frozenset({"blob", "bar", "crescent", "white", "charcoal", "sand", "plain"})
LABELS = tuple(sorted((SHAPES.keys() | COLOURS.keys() | FILLS.keys()) - DISTRACTORS))

_RGB = {
    "red": (214, 48, 49), "blue": (41, 98, 220), "yellow": (250, 204, 40), "green": (46, 160, 83),
    "violet": (150, 70, 190), "white": (243, 241, 236), "charcoal": (52, 56, 66), "sand": (196, 164, 132),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DrawnSet:
    """The two archives: training images, and test images with their true labels."""

    train: Path
    test: Path


@dataclass(frozen=True, kw_only=True)
class _Thing:
    shape: str
    colour: str
    fill: str

    @property
    def labels(self) -> set[str]:
        return {self.shape, self.colour, self.fill} - DISTRACTORS


def draw(
    folder: Path, *, images: int = 2400, test_images: int = 500, size_px: int = 64, seed: int = 0
) -> DrawnSet:
    """Draw `drawn.zip` (im1.jpg .. and annotations) and `drawn-test.zip` (the numbers after) in `folder`.

    A picture depends on its number, size and seed alone, and equal arguments give equal bytes. A
    complete archive made with these arguments is not drawn again.
    """
    drawn = DrawnSet(train=folder / "drawn.zip", test=folder / "drawn-test.zip")
    parts = ((drawn.train, 1, images), (drawn.test, images + 1, images + test_images))
    for path, first, last in parts:
        made_with = {"version": VERSION, "first": first, "last": last, "size_px": size_px, "seed": seed}
        comment = json.dumps(made_with).encode()
        if not _is_complete(path, comment):
            _write(path, range(first, last + 1), size_px, seed, comment)
    return drawn


def _is_complete(path: Path, comment: bytes) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == comment and archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _write(path: Path, numbers: range, size_px: int, seed: int, comment: bytes) -> None:
    images_by_label: dict[str, list[int]] = {label: [] for label in LABELS}
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for number in numbers:
            report(f"drawing {path.name}, image", number - numbers.start, len(numbers))
            image, labels = draw_image(number, size_px, seed)
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=90)
            archive.writestr(zipfile.ZipInfo(f"images/im{number}.jpg"), jpeg.getvalue())
            for label in labels:
                images_by_label[label].append(number)
        for label, with_label in images_by_label.items():
            shuffled = seeded(seed, "drawn order", label).permutation(with_label).tolist()
            text = "".join(f"{number:.0f}\n" for number in shuffled)
            archive.writestr(zipfile.ZipInfo(f"annotations/{label}.txt"), text)


def draw_image(number: int, size_px: int, seed: int) -> tuple[Image.Image, set[str]]:
    """Picture `number` as an RGB image of (size_px, size_px), and the labels it has."""
    rng = seeded(seed, "drawn", number)
    things = _things(rng)
    side = size_px * OVERSAMPLE
    canvas = _background(rng, side)
    places = _places(rng, len(things))
    for thing, (centre, radius) in zip(things, places, strict=True):
        _paint(rng, canvas, thing, centre * side, radius * side)
    grain = rng.normal(0, rng.uniform(1, 6), (size_px, size_px, 1))
    pixels_HWC = np.asarray(canvas.reduce(OVERSAMPLE)) + grain

    image = Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8))
    return image, set().union(*(thing.labels for thing in things))


def _things(rng: np.random.Generator) -> list[_Thing]:
    """What a picture shows: at least one label with probability LABELLED_SHARE, else distractors only."""
    labelled = rng.random() < LABELLED_SHARE
    while True:
        count = 1 + int(rng.choice(3, p=(0.55, 0.35, 0.1)))
        things = [
            _Thing(**{part: _pick(rng, table, labelled) for part, table in _PARTS.items()})
            for _ in range(count)
        ]
        if labelled == any(thing.labels for thing in things):
            return things


_PARTS: dict[str, dict[str, float]] = {"shape": SHAPES, "colour": COLOURS, "fill": FILLS}


def _pick(rng: np.random.Generator, table: dict[str, float], labelled: bool) -> str:
    names = [name for name in table if labelled or name in DISTRACTORS]
    weights = np.array([table[name] for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _places(rng: np.random.Generator, count: int) -> list[tuple[Outline, float]]:
    """Centres (x, y) and radii as fractions of the side; things do not overlap."""
    if count == 1:
        radius = rng.uniform(0.28, 0.4)
        return [(rng.uniform(0.45, 0.55, 2), radius)]
    quarters = np.array([(0.27, 0.27), (0.73, 0.73), (0.27, 0.73), (0.73, 0.27)])
    first = rng.permutation([0, 1] if rng.random() < 0.5 else [2, 3])
    order = [*first, *[quarter for quarter in range(4) if quarter not in first]]
    return [(quarters[order[i]] + rng.uniform(-0.03, 0.03, 2), rng.uniform(0.21, 0.26)) for i in range(count)]


def _background(rng: np.random.Generator, side: int) -> Image.Image:
    """Soft clouds around one muted colour."""

    base = rng.uniform(90, 205) + rng.uniform(-28, 28, 3)
    coarse = base + rng.normal(0, 16, (4, 4, 1)) + rng.normal(0, 9, (4, 4, 3))
    small = Image.fromarray(coarse.clip(20, 235).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def _paint(
    rng: np.random.Generator, canvas: Image.Image, thing: _Thing, centre: Outline, radius: float
) -> None:
    """Paint one thing with a drop shadow; `centre` (x, y) and `radius` in pixels of the canvas."""

    half = math.ceil(radius) + 1
    mask = Image.new("L", (2 * half, 2 * half))
    pen = ImageDraw.Draw(mask)
    angle = rng.uniform(-0.25, 0.25)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    for depth, outline in enumerate(_outlines(rng, thing.shape)):
        pen.polygon((outline @ turn * radius + half).ravel().tolist(), fill=0 if depth else 255)
    left, top = (round(float(middle)) - half for middle in centre)
    shade = max(1, round(radius * 0.1))
    canvas.paste(
        (0, 0, 0), (left + shade, top + shade), ImageChops.darker(mask, Image.new("L", mask.size, 85))
    )
    colour = (np.array(_RGB[thing.colour]) + rng.normal(0, 9, 3)).clip(0, 255)
    canvas.paste(tuple(colour.astype(int).tolist()), (left, top), mask)
    if thing.fill != "plain":
        partner = (245, 245, 245) if colour.mean() < 170 else (40, 40, 40)
        pattern = Image.fromarray(_pattern(rng, thing.fill, half, canvas.width))
        canvas.paste(partner, (left, top), ImageChops.darker(mask, pattern))


def _pattern(rng: np.random.Generator, fill: str, half: int, side: int) -> npt.NDArray[np.uint8]:
    """Where the second colour goes: (2 half, 2 half) uint8, 255 there and 0 elsewhere."""
    angle, period = rng.uniform(0.4, 1.1), side * rng.uniform(0.13, 0.16)
    y_HW, x_HW = np.mgrid[-half:half, -half:half] / period
    u_HW = (x_HW * math.cos(angle) + y_HW * math.sin(angle)) % 1
    v_HW = (y_HW * math.cos(angle) - x_HW * math.sin(angle)) % 1
    on_HW = {
        "stripes": u_HW < 0.5,
        "checker": (u_HW < 0.5) ^ (v_HW < 0.5),
        "dots": np.hypot(u_HW - 0.5, v_HW - 0.5) < 0.3,
    }[fill]
    return np.where(on_HW, 255, 0).astype(np.uint8)


def _outlines(rng: np.random.Generator, shape: str) -> list[Outline]:
    """Outlines (P, 2) in the unit disc: the first is filled, a second is cut out of it."""
    shapes: dict[str, Callable[[], list[Outline]]] = {
        "circle": lambda: [_regular(48)],
        "ring": lambda: [_regular(48), _regular(48) * 0.58],
        "square": lambda: [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8],
        "triangle": lambda: [_upright(3)],
        "star": lambda: [_upright(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]],
        "heart": lambda: [_heart()],
        "bar": lambda: [np.array([(-1, -0.2), (1, -0.2), (1, 0.2), (-1, 0.2)])],
        "blob": lambda: [_blob(rng)],
        "crescent": lambda: [_regular(48), _regular(48) * 0.85 + (0.45, 0)],
    }
    return shapes[shape]()


def _regular(corners: int) -> Outline:
    angle_P = np.arange(corners) * 2 * math.pi / corners
    return np.stack([np.cos(angle_P), np.sin(angle_P)], axis=1)


def _upright(corners: int) -> Outline:
    x_P, y_P = _regular(corners).T
    return np.stack([y_P, -x_P], axis=1)


def _heart() -> Outline:
    t_P = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x_P = 16 * np.sin(t_P) ** 3
    y_P = 13 * np.cos(t_P) - 5 * np.cos(2 * t_P) - 2 * np.cos(3 * t_P) - np.cos(4 * t_P)
    return np.stack([x_P, -y_P], axis=1) / 17


def _blob(rng: np.random.Generator) -> Outline:
    """A lobed closed curve, far from a circle."""
    outline = _regular(48)
    angle_P = np.arctan2(outline[:, 1], outline[:, 0])
    lobes = rng.integers(2, 4)
    wave_P = (
        np.sin(lobes * angle_P + rng.uniform(0, 6)) * 0.28 + np.sin(5 * angle_P + rng.uniform(0, 6)) * 0.08
    )
    blob: Outline = outline * (0.64 + wave_P)[:, None]
    return blob
