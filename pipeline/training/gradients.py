"""The gradients of a batch: in one pass or in micro-batches, by one process or by the ranks of a cell.

Ranks add their gradients up once a step, after the backward pass, and not while it runs as DistributedDataParallel
does: a step that finds no memory can then be repeated by all of them, in smaller parts too.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distributed.norms import WholeBatchNorm
from pipeline.distributed.rounds import RankOutOfMemoryError
from pipeline.training.learner import Learner

# B batch, M images of this rank in a part of it, K labels


def backward(learner: Learner, inputs_BCHW: Tensor, targets_BK: Tensor) -> Tensor | None:
    """Leave the gradients of a batch in the network, and return its loss; None where memory ran out.

    Each micro-batch weighs by its fraction of the images: the sum is the mean over the batch, as
    without them. That holds for losses that are means over images; soft F1 becomes the mean of the
    micro-batches' F1, and batch norm sees their statistics.

    Where several ranks train the cell, the inputs are this rank's own (every `size`th image of the batch) and the
    targets all; loss, batch norm and gradients are those of the whole batch, and None is returned on all.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    images, group, rounds = len(targets_BK), learner.group, learner.rounds
    parts = -(-images // (learner.execution.micro_batch or images))
    # none of fewer: parts are as even as can be
    parts = min(parts, max(1, images // learner.statistics.least_images))
    losses, is_short = [], False
    if rounds is not None:
        rounds.begin((images, parts, learner.epoch))
    try:
        for part in _parts(images, parts, group.rank, group.size):
            norms = WholeBatchNorm(rounds, counts=part.counts) if rounds else contextlib.nullcontext()
            with norms, learner.execution.autocast():
                logits = learner.trained(inputs_BCHW[part.own])
            logits_BK = logits.float() if rounds is None else _whole(learner, logits.float(), part)
            loss = learner.loss(logits_BK, targets_BK[part.rows])
            loss = loss if parts == 1 else loss * (len(logits_BK) / images)
            learner.scaler.scale(loss).backward()
            losses.append(loss.detach())
    except torch.OutOfMemoryError:
        is_short = True
    except RankOutOfMemoryError:
        pass  # `end` knows
    if rounds is not None:
        is_short = rounds.end(is_short=is_short)
    if is_short:
        return None
    if group.size > 1:
        group.add_up(learner.net)
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class _Part:
    """A micro-batch: `rows` of the batch, of which those at `own` of its inputs are this rank's.

    Where it has none, `own` is another image, which does not count.
    """

    rows: slice
    own: slice
    counts: bool


def _parts(images: int, parts: int, rank: int, size: int) -> list[_Part]:
    """As `tensor_split` divides the batch."""
    least, more = divmod(images, parts)
    edges = [i * least + min(i, more) for i in range(parts + 1)]
    found = []
    for start, stop in itertools.pairwise(edges):
        own = slice(-(-(start - rank) // size), -(-(stop - rank) // size))
        counts = own.start < own.stop
        found.append(_Part(slice(start, stop), own if counts else slice(0, 1), counts))
    return found


def _whole(learner: Learner, logits_MK: Tensor, part: _Part) -> Tensor:
    """(B, K): the logits of all ranks; the gradient of each goes to the rank that made it.

    Every rank computes the loss of the whole part, whatever loss it is: nothing is to be scaled.
    """
    assert learner.rounds is not None
    rank, size = learner.group.rank, learner.group.size
    images, labels = part.rows.stop - part.rows.start, logits_MK.shape[1]
    most = -(-images // size)
    padded = logits_MK.new_zeros((most, labels))
    if part.counts:
        padded[: len(logits_MK)] = logits_MK.detach()
    gathered = learner.rounds.gather(padded.flatten()).view(size, most, labels)
    logits_BK = logits_MK.new_empty((images, labels))
    for number in range(size):
        first = (number - part.rows.start) % size
        logits_BK[first::size] = gathered[number, : len(range(first, images, size))]
    if not part.counts:
        return logits_BK + 0 * logits_MK.sum()  # its network's backward pass keeps step
    logits_BK[(rank - part.rows.start) % size :: size] = logits_MK
    return logits_BK
