"""The weights that torchvision publishes for the networks a spec can name, without importing torchvision.

`tests/torchvision_catalogue.py` generates `torchvision_models.tsv` from the installed torchvision. A newer one may
have more; `pipeline/models/weights.py` asks it, so the table is for lists and notes alone.
"""

from __future__ import annotations

import functools
import pkgutil
from typing import NamedTuple


class TorchvisionWeights(NamedTuple):
    """Published weights, as torchvision's `meta` describes them."""

    name: str
    """Of the network."""
    weights: str
    """Torchvision's name for them."""
    image_px: int
    """The side of the pictures they were made for."""
    params_m: float
    """Millions of parameters."""
    gflops: float
    """Billions of multiplications with an addition for one picture of `image_px`."""
    file_mb: float
    """Of the file."""
    file: str
    """Its name, which ends with the first digits of its SHA-256."""
    licence: str
    """Empty where torchvision names none."""


@functools.cache
def torchvision_weights() -> dict[tuple[str, str], TorchvisionWeights]:
    """All of them by (network, weights); of each network torchvision's default first."""
    body = pkgutil.get_data("pipeline.spec", "torchvision_models.tsv")  # also from the zip of frozen code
    assert body is not None
    rows = [line.split("\t") for line in body.decode().splitlines()[1:]]
    found = [
        TorchvisionWeights(name, weights, int(px), float(params_m), float(gflops), float(mb), file, licence)
        for name, weights, px, params_m, gflops, mb, file, licence in rows
    ]
    return {(one.name, one.weights): one for one in found}
