"""Whether scores are probabilities: reliability and its error. Torch-free."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# N images, K labels
Scores = npt.NDArray[np.float32]
Decisions = npt.NDArray[np.uint8]
BINS = 10


def reliability(scores_NK: Scores, targets_NK: Decisions) -> dict[str, Any]:
    """Of all scores together: `ece`, and `reliability`, a row per tenth of [0, 1] that holds scores.

    The expected calibration error (Naeini et al. 2015) is the mean distance of a bin's mean score from
    its share of true labels, weighted by the scores in it.
    """
    scores, targets = scores_NK.ravel().astype(np.float64), targets_NK.ravel()
    bin_of = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bin_of, minlength=BINS)
    safe = np.maximum(count, 1)
    mean_score = np.bincount(bin_of, scores, BINS) / safe
    share_true = np.bincount(bin_of, targets, BINS) / safe
    rows = [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "count": int(count[i]),
            "mean_score": float(mean_score[i]),
            "share_true": float(share_true[i]),
        }
        for i in np.flatnonzero(count)
    ]
    ece = float((np.abs(mean_score - share_true) * count).sum() / max(len(scores), 1))
    return {"ece": ece, "reliability": rows}
