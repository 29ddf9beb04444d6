"""`score_split`: the one way to score images, used by validation, evaluate and predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.data.augment import to_input
from pipeline.data.loading import Rows, in_order
from pipeline.data.packed import PackedSet
from pipeline.device import Settled
from pipeline.errors import DivergedError

# N images, K labels


@dataclass(frozen=True)
class Scored:
    """Logits, scores (sigmoid of them, in [0, 1]) and targets of some rows, in their order."""

    ids: list[str]
    logits_NK: npt.NDArray[np.float32]
    scores_NK: npt.NDArray[np.float32]
    targets_NK: npt.NDArray[np.uint8]


@torch.inference_mode()
def score_split(
    net: nn.Module, packed: PackedSet, rows: Rows, *, image_px: int, settled: Settled, batch_size: int = 128
) -> Scored:
    """Scores of `rows` under `net`, in evaluation mode (the caller sets training mode again).

    Raises DivergedError when a score is not finite, naming the first image.
    """
    net.eval()
    parts = []
    for batch in in_order(packed, rows, batch_size):
        images_BHWC = torch.from_numpy(batch.images_BHWC).to(settled.device)
        with settled.autocast():
            logits_BK = net(to_input(images_BHWC, image_px))
        parts.append(logits_BK.float().cpu())
    logits_NK = torch.cat(parts)
    broken = (~torch.isfinite(logits_NK).all(dim=1)).nonzero()
    if len(broken):
        name = packed.names[rows[int(broken[0])]]
        raise DivergedError(
            f"scores of {len(broken)} images are not finite, first {name}; the network diverged"
        )
    return Scored(
        ids=[packed.ids[row] for row in rows],
        logits_NK=logits_NK.numpy(),
        scores_NK=torch.sigmoid(logits_NK).numpy(),
        targets_NK=packed.labels_NK[rows],
    )
