"""Resamples of images as weights, and average precision under each of them, in bounded memory. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.metrics.ranking import score_bits, true_keys
from pipeline.seeding import seeded

# N images, K labels, R resamples, M scores, G distinct scores of true labels
Weights = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]  # (N, R), none above a 16th of what the type holds
RESAMPLES = 1000
_HELD = 2**28  # bytes of weights: all of up to 268,000 images, which the next cell takes again
_BLOCK = 16  # rows whose sum the type of the weights holds
_AT_ONCE = 2**20  # weights
_SUMS_AT_ONCE = 2**17  # of them, as float64


def resample_weights(images: int) -> Iterator[Weights]:
    """(N, R): how often each image is in each resample (multinomial); some resamples at a time, all in order.

    The draws depend on the number of images alone. Beyond 256 MiB they are drawn again at each call.
    """
    if images * RESAMPLES <= _HELD:
        yield _all_weights(images)
    else:
        yield from _draw(images)


@lru_cache(maxsize=2)
def _all_weights(images: int) -> Weights:
    (weights_NR,) = _draw(images)
    weights_NR.flags.writeable = False
    return weights_NR


def _draw(images: int) -> Iterator[Weights]:
    random, share_N = seeded(0, "bootstrap", images), np.full(images, 1 / images)
    at_once = min(RESAMPLES, max(_BLOCK, _HELD // images))
    for start in range(0, RESAMPLES, at_once):
        weights_RN = np.empty((min(at_once, RESAMPLES - start), images), np.uint16)
        for weights_N in weights_RN:
            weights_N[:] = random.multinomial(images, share_N)
        # more than 15 times the same image is next to impossible, not impossible
        small = weights_RN.max(initial=0) < 256 // _BLOCK
        yield np.ascontiguousarray(weights_RN.T, np.uint8) if small else np.ascontiguousarray(weights_RN.T)


def image_keys(
    scores_NK: npt.NDArray[np.float32], targets_NK: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint64]:
    """(N, K), not sorted: ascending by decreasing score, with the image and, as last bit, the truth."""
    images, labels = scores_NK.shape
    keys_NK = np.empty((images, labels), np.uint64)
    rows = max(1, _AT_ONCE // max(labels, 1))
    for start in range(0, images, rows):
        chunk = slice(start, start + rows)
        keys = keys_NK[chunk]
        np.subtract(2**31 - 1, score_bits(scores_NK[chunk]), out=keys)
        keys <<= 32
        keys |= np.arange(start, start + len(keys), dtype=np.uint64)[:, None]
        keys <<= 1
        keys |= targets_NK[chunk].astype(bool)
    return keys_NK


def weighted_average_precision(
    weights_NR: Weights, keys_M: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """(R,): average precision under each resample, equal scores taken together; NaN without a true label.

    `keys_M` are sorted `image_keys`. Every weight is added once for each score, as a byte, and the sums are exact.
    """
    true_P = keys_M[true_keys(keys_M)]
    result_R = np.zeros(weights_NR.shape[1])
    if not len(true_P):
        return np.full_like(result_R, np.nan)
    hits_G = np.append(np.flatnonzero(np.diff(true_P >> 33)) + 1, len(true_P))
    # precision at a true label counts all scores at least as high: up to the last of a tie
    ends_G = np.searchsorted(keys_M, true_P[hits_G - 1] | np.uint64(2**33 - 1), side="right")
    all_sums, true_sums = _RunningSums(weights_NR, keys_M), _RunningSums(weights_NR, true_P)
    before_R = np.zeros_like(result_R)
    at_once = max(1, _SUMS_AT_ONCE // len(result_R))
    for start in range(0, len(hits_G), at_once):
        chunk = slice(start, start + at_once)
        predicted_GR, true_positives_GR = all_sums.of_first(ends_G[chunk]), true_sums.of_first(hits_G[chunk])
        own_GR = np.diff(true_positives_GR, axis=0, prepend=before_R[None])
        before_R = true_positives_GR[-1]
        own_GR *= true_positives_GR
        own_GR /= np.maximum(predicted_GR, 1, out=predicted_GR)
        result_R += own_GR.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(result_R / before_R)


class _RunningSums:
    """Sums of the weights of the first n keys, for ever larger n."""

    def __init__(self, weights_NR: Weights, keys_M: npt.NDArray[np.uint64]) -> None:
        self._weights_NR, self._keys_M = weights_NR, keys_M
        self._done, resamples = 0, weights_NR.shape[1]
        self._sum_R = np.zeros(resamples)
        rows = min(max(1, _AT_ONCE // resamples), len(keys_M))
        self._rows = -(-rows // _BLOCK) * _BLOCK
        self._taken = np.empty((self._rows, resamples), weights_NR.dtype)

    def of_first(self, numbers_G: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """(G, R) of these n, which rise and are larger than any before."""
        sums_GR = np.empty((len(numbers_G), len(self._sum_R)))
        found = 0
        while found < len(numbers_G):
            end = min(self._done + self._rows, int(numbers_G[-1]))
            upto = int(np.searchsorted(numbers_G, end, side="right"))
            self._advance(end, numbers_G[found:upto] - self._done - 1, sums_GR[found:upto])
            found = upto
        return sums_GR

    def _advance(self, end: int, last_G: npt.NDArray[np.int64], sums_GR: npt.NDArray[np.float64]) -> None:
        """Go on to key `end`; the sums up to and with each of `last_G`, counted from here."""
        images = ((self._keys_M[self._done : end] >> 1) & (2**32 - 1)).astype(np.intp)
        padded = -(-len(images) // _BLOCK) * _BLOCK
        taken = self._taken[:padded]
        np.take(self._weights_NR, images, axis=0, out=taken[: len(images)], mode="clip")
        taken[len(images) :] = 0
        # within a block the type of the weights holds the sums; of whole blocks there are few
        blocks = taken.reshape(-1, _BLOCK, taken.shape[1])
        for row in range(1, _BLOCK):
            blocks[:, row] += blocks[:, row - 1]
        before = np.empty((len(blocks) + 1, taken.shape[1]))
        before[0] = self._sum_R
        np.cumsum(blocks[:, -1], axis=0, dtype=np.float64, out=before[1:])
        before[1:] += self._sum_R
        np.add(before[last_G // _BLOCK], taken[last_G], out=sums_GR)
        self._done, self._sum_R = end, before[-1]
