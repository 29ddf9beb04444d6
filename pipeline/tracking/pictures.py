"""Small pictures: JPEGs, sheets of several images, and the images with the worst mistakes. Torch-free."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

# N images, H W pixels, C channels
Pixels = npt.NDArray[np.uint8]
_QUALITY = 80
_GAP = 2


def jpeg(picture: Image.Image, px: int | None = None) -> bytes:
    """The picture as a JPEG, no side longer than `px`."""
    if px is not None and max(picture.size) > px:
        picture = picture.copy()
        picture.thumbnail((px, px))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def sheet(images: Sequence[Pixels], columns: int, px: int, captions: Sequence[str] = ()) -> Image.Image:
    """Images (H, W, 3) side by side, each scaled to fit `px`, with its caption below."""
    line = 12 if captions else 0
    rows = -(-len(images) // columns)
    step_x, step_y = px + _GAP, px + line + _GAP
    whole = Image.new("RGB", (columns * step_x - _GAP, rows * step_y - _GAP), "white")
    draw = ImageDraw.Draw(whole)
    for i, image_HWC in enumerate(images):
        left, top = i % columns * step_x, i // columns * step_y
        whole.paste(Image.fromarray(image_HWC).resize((px, px)), (left, top))
        if captions:
            draw.text((left + 2, top + px), captions[i], fill="black")
    return whole


@dataclass(frozen=True)
class Mistakes:
    """Positions of a label's worst images, the worst first: high scores without it, low scores with it."""

    false_positives: list[int]
    false_negatives: list[int]

    @classmethod
    def of(cls, scores_N: npt.NDArray[np.float32], targets_N: npt.NDArray[np.uint8], count: int) -> Mistakes:
        """At most `count` of each kind."""
        order = np.argsort(-scores_N, kind="stable")
        actual = targets_N[order] == 1
        return cls(order[~actual][:count].tolist(), order[actual][::-1][:count].tolist())
