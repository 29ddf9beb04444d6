"""One picture of some images with the labels as they were read, so that a person sees a shifted column."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.decoding import Preparation, decode, reason
from pipeline.data.parts import Sources
from pipeline.data.reading import DataRead
from pipeline.seeding import seeded

_COLUMNS, _ROWS, _TILE_PX, _MARGIN_PX, _LINE_PX, _LINES = 4, 3, 240, 12, 18, 4
_SHOWN = _COLUMNS * _ROWS


def choose_rows(read: DataRead, seed: int = 0) -> list[int]:
    """Up to twelve images: for as many labels as possible one that has it, and at least one without labels."""
    rng = seeded(seed, "contact sheet")
    chosen: dict[int, None] = {}
    negative = np.flatnonzero(~read.labels_NK.any(axis=1))
    if len(negative):
        chosen[int(rng.choice(negative))] = None
    for label in np.argsort(read.labels_NK.sum(axis=0), kind="stable"):
        has = np.flatnonzero(read.labels_NK[:, label])
        if len(has) and len(chosen) < _SHOWN and not read.labels_NK[list(chosen), label].any():
            chosen[int(rng.choice(has))] = None
    for row in rng.permutation(len(read.images)):
        if len(chosen) < _SHOWN:
            chosen[int(row)] = None
    return sorted(chosen)


def contact_sheet(read: DataRead, path: Path, ends: tuple[float, float] | None = None) -> None:
    """Write the picture; an image that cannot be decoded is a grey tile that says so.

    `ends` are the values of pictures with more than 8 bits that become black and white.
    """
    preparation = Preparation(_TILE_PX, "squash", ends)
    height = _TILE_PX + (_LINES + 1) * _LINE_PX + _MARGIN_PX
    sheet = Image.new(
        "RGB", (_COLUMNS * (_TILE_PX + _MARGIN_PX) + _MARGIN_PX, _ROWS * height + _MARGIN_PX), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    with Sources() as sources:
        for place, row in enumerate(choose_rows(read)):
            image = read.images[row]
            left = _MARGIN_PX + place % _COLUMNS * (_TILE_PX + _MARGIN_PX)
            top = _MARGIN_PX + place // _COLUMNS * height
            try:
                pixels_HWC = decode(sources(read.sources[row]).read(image.member), preparation)
                sheet.paste(Image.fromarray(pixels_HWC), (left, top))
            except Exception as error:  # noqa: BLE001 - one file's damage is shown in its tile
                draw.rectangle((left, top, left + _TILE_PX, top + _TILE_PX), fill="lightgrey")
                draw.text((left + 4, top + 4), "\n".join(textwrap.wrap(reason(error), 32)), "black", font)
            labels = [
                label for label, present in zip(read.labels, read.labels_NK[row], strict=True) if present
            ]
            lines = textwrap.wrap(", ".join(labels) or "no label", 32)
            if len(lines) > _LINES:
                lines[_LINES - 1 :] = ["..."]
            name = image.member if len(image.member) <= 34 else "..." + image.member[-31:]
            draw.text((left, top + _TILE_PX + 3), name, "dimgrey", font)
            draw.text((left, top + _TILE_PX + 3 + _LINE_PX), "\n".join(lines), "black", font, spacing=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
