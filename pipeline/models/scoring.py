"""The one way to score images, used by validation, evaluate and predict; several networks share one pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.data.inputs import to_input
from pipeline.data.loading import Rows, spans_in_order
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import drop_resident, pixel_cache
from pipeline.data.transfer import one_ahead, one_behind
from pipeline.distributed.group import SOLO, Group
from pipeline.errors import DivergedError
from pipeline.models.device import ExecutionConfig
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.slices import in_slices
from pipeline.progress import report
from pipeline.spec import Preprocessing

# N images, B of a batch, M of a rank in a round, K labels, S networks
Found = TypeVar("Found")
_BATCH_SIZE = {"cpu": 128, "cuda": 512}  # a CPU's caches gain nothing by more; halved where a GPU has no room
_ROUND = 32  # batches of each rank between two exchanges, at which a lost one is noticed


@dataclass(frozen=True)
class Scored:
    """Logits, scores (sigmoid of them, in [0, 1]) and targets of some rows, in their order."""

    ids: Sequence[str]
    logits_NK: npt.NDArray[np.float32]
    scores_NK: npt.NDArray[np.float32]
    targets_NK: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, logits_NK: Tensor, packed: PackedSet, rows: Rows) -> Scored:
        """Raises DivergedError when a score is not finite, naming the first image."""
        refuse_divergence(logits_NK, packed, rows)
        return cls(
            ids=packed.ids.take(rows),
            logits_NK=logits_NK.numpy(),
            scores_NK=torch.sigmoid(logits_NK).numpy(),
            targets_NK=packed.labels_NK[rows],
        )


def refuse_divergence(logits_NK: Tensor, packed: PackedSet, rows: Rows) -> None:
    """Raises DivergedError when a score is not finite, naming the first image."""
    finite_2N = torch.isfinite(torch.stack(tuple(torch.aminmax(logits_NK, dim=1))))  # no copy of all scores
    broken = (~finite_2N.all(dim=0)).nonzero()
    if len(broken):
        name = packed.names[rows[int(broken[0])]]
        raise DivergedError(
            f"scores of {len(broken)} images are not finite, first {name}; the network diverged"
        )


@dataclass(frozen=True)
class Scorer:
    """A network (on its device), the size and normalisation of its input, the precision it is scored in.

    With `flips` a logit is the mean over a picture and its mirror image.
    """

    net: nn.Module
    image_px: int
    execution: ExecutionConfig
    preprocessing: Preprocessing
    flips: bool = False

    @property
    def input_kind(self) -> tuple[int, Preprocessing]:
        """What pictures must become; scorers of one kind share them."""
        return self.image_px, self.preprocessing

    def logits(self, inputs_BCHW: Tensor) -> Tensor:
        """(B, K) float32 of inputs of its size, on its device."""
        views = [inputs_BCHW, inputs_BCHW.flip(3)] if self.flips else [inputs_BCHW]
        with self.execution.autocast():
            return torch.stack([in_slices(self.net, view).float() for view in views]).mean(dim=0)


@torch.inference_mode()
def compute_logits(
    scorers: Sequence[Scorer],
    packed: PackedSet,
    rows: Rows,
    *,
    batch_size: int | None = None,
    shown: Callable[[int], object] | None = None,
) -> list[Tensor]:
    """Logits (N, K) float32 on the CPU of `rows` under each network, all on one device.

    Each batch is read once, and brought to each size and normalisation once. Puts the networks into
    evaluation mode (the caller sets training mode again). Where a GPU has no room for a batch, gives up
    resident pixels, then halves the batch. `shown` is told how many rows are done, instead of the progress line.
    """
    shown = shown or functools.partial(report, "scoring image", total=len(rows))
    size = batch_size or _BATCH_SIZE[scorers[0].execution.device]
    if len(scorers) > 1:
        with contextlib.suppress(torch.OutOfMemoryError):  # of their fused copies, perhaps: then one by one
            return shrink_batch_to_fit(
                functools.partial(_compute_logits, scorers, packed, rows, shown=shown), size
            )
    found: list[Tensor] = []
    for each in scorers:
        found += shrink_batch_to_fit(
            functools.partial(_compute_logits, [each], packed, rows, shown=shown), size
        )
    return found


def compute_logits_by_ranks(
    group: Group, scorers: Sequence[Scorer], packed: PackedSet, rows: Rows, *, batch_size: int | None = None
) -> list[Tensor] | None:
    """`compute_logits` by all ranks of a group, on rank 0; None on the others.

    Batches are those of one process, and ranks take them in turn: with as many threads, or on the same kind of GPU,
    logits have the same bits. Raises LostRankError.
    """
    if group.size == 1:
        return compute_logits(scorers, packed, rows, batch_size=batch_size)
    size = batch_size or _BATCH_SIZE[scorers[0].execution.device]
    spans = spans_in_order(len(rows), size)
    found_SNK: Tensor | None = None
    for first in range(0, len(spans), _ROUND * group.size):
        some = spans[first : first + _ROUND * group.size]
        places = [_places(some[rank :: group.size]) for rank in range(group.size)]
        own_M = places[group.rank]

        def shown(done: int, before: int = some[0].start) -> None:
            report("scoring image", min(before + done * group.size, len(rows)), len(rows))

        mine_MSK: Tensor | None = None
        if len(own_M):
            found = compute_logits(scorers, packed, rows[own_M], batch_size=size, shown=shown)
            mine_MSK = torch.stack(found, dim=1)
        for place_M, part_MSK in zip(places, group.each(mine_MSK, [*map(len, places)]), strict=True):
            if group.leads:
                if found_SNK is None:
                    found_SNK = part_MSK.new_empty(len(scorers), len(rows), part_MSK.shape[-1])
                found_SNK[:, torch.from_numpy(place_M)] = part_MSK.transpose(0, 1)
    return None if found_SNK is None else list(found_SNK)


def _places(spans: Sequence[slice]) -> Rows:
    return np.concatenate([np.empty(0, np.int64), *(np.arange(span.start, span.stop) for span in spans)])


def shrink_batch_to_fit(work: Callable[[int], Found], batch_size: int, group: Group = SOLO) -> Found:
    """What `work` makes with a batch size: at first again without resident pixels, then halved until it fits.

    Where the ranks of a group work together, it raises on all of them, and all go on with the same size.
    """
    released = False
    while True:
        try:
            return work(batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1 and released:
                raise
        if not group.any(release_memory()):
            released, batch_size = True, -(-batch_size // 2)


def release_memory() -> bool:
    """Give back what a GPU holds without need: pixels or features, and what torch caches. Whether there were any."""
    had_some = drop_resident()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if had_some:
        print("out of GPU memory: pixels and features are copied batch by batch from now on", flush=True)
    return had_some


def _compute_logits(
    scorers: Sequence[Scorer],
    packed: PackedSet,
    rows: Rows,
    batch_size: int,
    *,
    shown: Callable[[int], object],
) -> list[Tensor]:
    scorers = [replace(scorer, net=fuse_conv_bn(scorer.net)) for scorer in scorers]
    device, spans = scorers[0].execution.device, spans_in_order(len(rows), batch_size)
    batches = pixel_cache(packed, device).batches(rows, spans)

    def made() -> Iterator[Tensor]:
        """Logits (scorers, B, K) of each batch."""
        pictures = one_ahead(lambda: (batch.images_BHWC for batch in batches), device)
        for images_BHWC, span in zip(pictures, spans, strict=True):
            shown(span.start)
            inputs = {kind: to_input(images_BHWC, *kind) for kind in {each.input_kind for each in scorers}}
            yield torch.stack([scorer.logits(inputs[scorer.input_kind]) for scorer in scorers])

    found_SNK, done = torch.empty(0), 0
    for logits_SBK in one_behind(made()):  # into one tensor: parts and their whole would be twice the memory
        if not done:
            found_SNK = logits_SBK.new_empty(len(scorers), len(rows), logits_SBK.shape[-1])
        found_SNK[:, done : done + logits_SBK.shape[1]] = logits_SBK
        done += logits_SBK.shape[1]
    return list(found_SNK)


def compute_scores(
    scorers: Sequence[Scorer], packed: PackedSet, rows: Rows, *, batch_size: int | None = None
) -> list[Scored]:
    """Scores of `rows` under each network, in one pass over the images; raises DivergedError."""
    logits = compute_logits(scorers, packed, rows, batch_size=batch_size)
    return [Scored.of(logits_NK, packed, rows) for logits_NK in logits]
