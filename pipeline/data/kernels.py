"""The filters of a resize: what a pixel weighs at a distance, in output pixels where the picture shrinks."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Distances = TypeVar("Distances", npt.NDArray[np.float64], Tensor)

REACH = {"bilinear": 1, "bicubic": 2}


def kernel(distance: Distances, interpolation: str) -> Distances:
    """The weight at an absolute distance; 0 from REACH on.

    Bilinear is a triangle. Bicubic is the cubic convolution of Keys (1981) with a = -0.5, as in Pillow and in torch
    with antialias; OpenCV, and torch without it, take a = -0.75.
    """
    if interpolation == "bilinear":
        return (1 - distance).clip(0)
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
    is_near, is_far = distance < 1, (distance >= 1) & (distance < 2)
    found: Distances = near * is_near + far * is_far
    return found
