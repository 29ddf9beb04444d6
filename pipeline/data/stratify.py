"""Divide images, or groups of them, so that each part has its share of the images and of every label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# G groups (of one image each where there are no groups), K labels, S parts
Counts = npt.NDArray[np.int64]
Labels = npt.NDArray[np.integer[Any]]  # counts of images with a label, in as few bytes as hold them
_VALUES = 1 << 20  # counts at a time as numbers of 8 bytes


def part_sizes(images: int, shares: Sequence[float]) -> Counts:
    """How many of the images each part gets: (S,), in whole images that sum to all of them."""
    edges = np.rint(np.cumsum(shares) * images).astype(np.int64)
    edges[-1] = images
    sizes: Counts = np.diff(edges, prepend=0)
    return sizes


def stratify(labels_GK: Labels, size_G: Counts, shares: Sequence[float], rng: np.random.Generator) -> Counts:
    """The part (0 .. S - 1) of each group: (G,).

    `labels_GK` counts the images with each label in a group, `size_G` its images. Iterative
    stratification: the label with the fewest images left first, each group to the part that lacks that
    label most (K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the Stratification of Multi-Label Data", ECML
    PKDD 2011). Where all lack less than one image of it, the part decides that is furthest behind as a
    whole: else labels with two images would all go to training. Groups without labels are one more
    label. Last, groups move until each part has its share of the images, those first whose move changes
    the shares of labels least.
    """
    # no label counts more images of a group than it has
    negative_G1 = np.where(labels_GK.any(axis=1), 0, size_G)[:, None].astype(count_type(size_G))
    labels_GK = np.hstack([labels_GK, negative_G1], dtype=negative_G1.dtype, casting="unsafe")
    share_S = np.asarray(shares, float)
    room_S = part_sizes(int(size_G.sum()), shares).astype(np.int64)
    whole_S = np.maximum(room_S, 1)
    left_K = labels_GK.sum(axis=0, dtype=np.int64)
    lack_SK = share_S[:, None] * left_K[None]
    part_G = np.full(len(labels_GK), -1, np.int64)
    order_G = rng.permutation(len(labels_GK))
    tie_GS = rng.random((len(labels_GK), len(share_S)))
    while left_K.any():
        label = int(np.where(left_K > 0, left_K, left_K.max() + 1).argmin())
        waiting_G = (labels_GK[:, label] > 0) & (part_G < 0)
        with_label = order_G[waiting_G[order_G]]
        for group in with_label.tolist():
            best = _best_part(lack_SK[:, label], room_S / whole_S, share_S, tie_GS[group])
            part_G[group] = best
            lack_SK[best] -= labels_GK[group]
            room_S[best] -= size_G[group]
            left_K -= labels_GK[group]
    _move_to_sizes(part_G, labels_GK, size_G, lack_SK, room_S)
    _fill_empty_parts(part_G, size_G, shares)
    return part_G


def count_type(size_G: Counts) -> np.dtype[Any]:
    """The smallest type that holds how many images of a group have a label."""
    return np.min_scalar_type(int(size_G.max(initial=0)))


def _best_part(
    lack_S: npt.NDArray[np.float64],
    behind_S: npt.NDArray[np.float64],
    share_S: npt.NDArray[np.float64],
    tie_S: npt.NDArray[np.float64],
) -> int:
    asked = np.flatnonzero(share_S > 0).tolist()
    if lack_S.max() >= 1:
        return int(max(asked, key=lambda part: (lack_S[part], behind_S[part], tie_S[part])))
    return int(max(asked, key=lambda part: (behind_S[part], lack_S[part], tie_S[part])))


def _move_to_sizes(
    part_G: Counts, labels_GK: Labels, size_G: Counts, lack_SK: npt.NDArray[np.float64], room_S: Counts
) -> None:
    """Move groups from the fullest part to the emptiest; changes `part_G`, `lack_SK` and `room_S`."""
    while True:
        full, empty = int(room_S.argmin()), int(room_S.argmax())
        missing = min(-room_S[full], room_S[empty])
        movable = np.flatnonzero((part_G == full) & (size_G <= missing))
        if missing <= 0 or not len(movable):
            return
        change_K, rows = lack_SK[full] - lack_SK[empty], max(1, _VALUES // labels_GK.shape[1])
        cost_M = np.empty(len(movable))  # the change of the squared lacks of both parts
        for start in range(0, len(movable), rows):
            moved_MK = labels_GK[movable[start : start + rows]].astype(np.int64)
            cost_M[start : start + rows] = moved_MK @ change_K + (moved_MK**2).sum(axis=1)
        for group in movable[np.argsort(cost_M, kind="stable")][: 1 + missing // 20].tolist():
            if size_G[group] <= min(-room_S[full], room_S[empty]):
                part_G[group] = empty
                for part, sign in ((full, 1), (empty, -1)):
                    lack_SK[part] += sign * labels_GK[group].astype(np.int64)
                    room_S[part] += sign * size_G[group]


def _fill_empty_parts(part_G: Counts, size_G: Counts, shares: Sequence[float]) -> None:
    """Where every group was too large for a part's room, it still gets the one nearest to its share."""
    for part, share in enumerate(shares):
        crowded = np.bincount(part_G, minlength=len(shares)) > 1
        movable = np.flatnonzero(crowded[part_G])
        if share > 0 and not (part_G == part).any() and len(movable):
            nearest = np.abs(size_G[movable] - share * size_G.sum()).argmin()
            part_G[movable[nearest]] = part
