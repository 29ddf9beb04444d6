"""Batches on the device, for training and for validation: pixels, or features that were computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.data.augment import Augmentation
from pipeline.data.loading import Rows, Stream
from pipeline.data.mixing import Mixing
from pipeline.data.own_augment import OwnAugmentation
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import DROPPABLE, fits_on_gpu, pixel_cache
from pipeline.data.shares import Share, own_positions
from pipeline.data.transfer import one_ahead, one_behind, to_device
from pipeline.distributed.group import SOLO, Group
from pipeline.models.build import trainable_part
from pipeline.models.features import FEATURE_BATCH, FrozenNetwork, channels_first, positions_of
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.scoring import Scorer, compute_logits, shrink_batch_to_fit
from pipeline.spec import TrainSpec
from pipeline.storage.host import memory_available
from pipeline.training.learner import Learner

_HOST_SHARE = 0.25  # of the memory that is free, for features of all views


class Feed(Protocol):
    """What the loop takes batches from; cells of one stream share it."""

    steps_per_epoch: int

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs (B, ...), targets (B, K) float32) from `first_step` of `epoch` (both 0-based) on."""
        ...

    def logits(self, scorers: Sequence[Scorer]) -> list[Tensor]:
        """(N, K) float32 on the CPU of the validation images, under each network, in one pass."""
        ...


def build_feed(learner: Learner, stopped: Callable[[], bool] = lambda: False) -> Feed:
    """Pixels, or with `train.cached_views` the features of the frozen part; raises Stopped while these are made."""
    data = learner.data
    if learner.train.cached_views is None:
        device, code, group = learner.execution.device, learner.code, learner.group
        return PixelFeed(learner.train, learner.stream, data.validation, device, code=code, group=group)
    frozen = FrozenNetwork(
        learner.net, learner.train, data.packed, learner.execution, folder=data.features, stopped=stopped
    )
    frozen.shared_by(learner.group)
    return FeatureFeed(frozen, learner.stream, data.validation, learner.group)


class PixelFeed:
    """Augmented images of a stream, epoch by epoch."""

    def __init__(
        self,
        recipe: TrainSpec,
        stream: Stream,
        validation: Rows,
        device: str,
        *,
        code: Path | None = None,
        group: Group = SOLO,
    ) -> None:
        self.recipe, self.stream, self.validation, self.device = recipe, stream, validation, device
        self.code, self.group = code, group
        self.steps_per_epoch = stream.steps_per_epoch

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs (B, C, S, S), targets (B, K)) from `first_step` of `epoch` on."""
        recipe, stream, spans = self.recipe, self.stream, self.stream.spans
        pixels = pixel_cache(stream.packed, self.device)
        own = (
            OwnAugmentation(recipe.augment.own, recipe.seed, epoch, self.code) if recipe.augment.own else None
        )
        mixing = Mixing(recipe.augment, recipe.seed, epoch, spans, recipe.image_px)
        rank, size = self.group.rank, self.group.size
        # a user's function sees and draws for a whole batch: then every rank makes all of it, and takes its own
        takes = own_positions(spans, rank, size) if self._is_shared and own is not None else None
        share = Share(spans, rank, size, mixing.partner_N) if self._is_shared and own is None else None
        parts, positions_N = (spans, None) if share is None else (share.made, share.positions_M)
        augmentation = Augmentation(recipe.augment, recipe.seed, epoch, parts, positions_N)

        def made() -> Iterator[tuple[Tensor, Tensor]]:
            order_N = stream.order(epoch)
            rows_N = to_device(order_N, self.device) if share else None
            made_N = order_N if positions_N is None else order_N[positions_N]
            for number, batch in enumerate(pixels.batches(made_N, parts[first_step:]), first_step):
                inputs_BCHW = augmentation(
                    batch.images_BHWC, batch.span, recipe.image_px, recipe.model.preprocessing
                )
                if own is not None:
                    inputs_BCHW = own(inputs_BCHW, batch.span, recipe.model.preprocessing)
                if share is None or rows_N is None:
                    mixed_BCHW, targets_BK = mixing(inputs_BCHW, batch.targets_BK, batch.span)
                    yield (
                        mixed_BCHW if takes is None else _taken(mixed_BCHW, batch.span, takes[number]),
                        targets_BK,
                    )
                else:
                    targets_BK = pixels.targets(rows_N[spans[number]])
                    yield mixing.of_share(inputs_BCHW, targets_BK, spans[number], share, number)

        return one_ahead(made, self.device)

    @property
    def _is_shared(self) -> bool:
        return self.group.size > 1

    def logits(self, scorers: Sequence[Scorer]) -> list[Tensor]:
        """Of the validation images, under each."""
        rows = self.validation
        return shared_logits(self.group, scorers, self.stream.packed, rows) if scorers else []


def _taken(inputs_BCHW: Tensor, span: slice, own: slice) -> Tensor:
    """Those at the positions `own` of a batch at the positions `span`."""
    some_BCHW = inputs_BCHW[own.start - span.start : own.stop - span.start : own.step]
    return some_BCHW.contiguous(memory_format=torch.channels_last)


class FeatureFeed:
    """Features instead of images: the same rows in the same order as without the cache."""

    def __init__(self, frozen: FrozenNetwork, stream: Stream, validation: Rows, group: Group = SOLO) -> None:
        self.frozen, self._stream, self._group = frozen, stream, group
        self._device = frozen.execution.device
        self.steps_per_epoch = stream.steps_per_epoch
        self._positions = positions_of(stream.rows, len(frozen.packed))
        self._labels_NK = to_device(frozen.packed.labels_NK, self._device)
        self._views: dict[int, Tensor] = {}
        self._may_be_resident = self._device != "cpu"
        self._rows = validation
        self._validation = self._placed(frozen.plain(validation))
        DROPPABLE.add(self)

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(features (B, ...), targets (B, K)) from `first_step` of `epoch` on; epochs take the views in turn."""
        order, spans = self._stream.order(epoch), self._stream.spans
        own = own_positions(spans, self._group.rank, self._group.size)
        rows_N = to_device(order, self._device)
        features = self._view(epoch % self.frozen.views)

        def made() -> Iterator[tuple[Tensor, Tensor]]:
            chosen_N = to_device(self._positions[order], features.device)
            for part, span in zip(own[first_step:], spans[first_step:], strict=True):
                inputs = to_device(features[chosen_N[part]], self._device)
                yield channels_first(inputs), self._labels_NK[rows_N[span]].float()

        return one_ahead(made, self._device)

    def _view(self, view: int) -> Tensor:
        """A view's features: kept in memory where all views fit, else read anew when its turn comes."""
        if self._group.any(view not in self._views):
            if self._views and not self._keeps_all():
                self._views.clear()  # before the next one is read: two would be twice the memory
            self._views[view] = self._placed(self.frozen.augmented(self._stream.rows, view))
        return self._views[view]

    def _keeps_all(self) -> bool:
        """Whether there is room for those to come, each as large as these, in the host's memory."""
        size = max(features.nbytes for features in self._views.values())
        return (self.frozen.views - len(self._views)) * size <= _HOST_SHARE * memory_available()

    def _placed(self, features: Tensor) -> Tensor:
        """On the GPU where there is room."""
        held = sum(view.nbytes for view in self._views.values() if view.device.type != "cpu")
        if not self._may_be_resident or not fits_on_gpu(features.nbytes, held):
            return features
        return to_device(features, self._device)

    def drop(self) -> bool:
        """Take the features off the GPU, for good; whether there were any."""
        self._may_be_resident = False
        if all(features.device.type == "cpu" for features in (*self._views.values(), self._validation)):
            return False
        torch.cuda.synchronize()  # another stream may still be reading them
        self._views = {view: features.cpu() for view, features in self._views.items()}
        self._validation = self._validation.cpu()
        return True

    @torch.inference_mode()
    def logits(self, scorers: Sequence[Scorer]) -> list[Tensor]:
        """Of the validation rows under each: from cached features, or from images of other sizes and flips."""
        train = self.frozen.train
        if any(scorer.flips or scorer.image_px != train.image_px for scorer in scorers):
            return shared_logits(self._group, scorers, self.frozen.packed, self._rows)
        return [
            self._logits(scorer, fuse_conv_bn(trainable_part(scorer.net, train.model))) for scorer in scorers
        ]

    def _logits(self, scorer: Scorer, part: nn.Module) -> Tensor:
        count = len(self._validation)
        own = self._group.own_rows(count)
        chosen = self._validation[slice(own[0], None, self._group.size)]

        def made(batch_size: int) -> Iterator[Tensor]:
            for features in chosen.split(batch_size):
                with scorer.execution.autocast():
                    yield part(channels_first(to_device(features, self._device))).float()

        logits = shrink_batch_to_fit(lambda size: torch.cat(list(one_behind(made(size)))), FEATURE_BATCH)
        return self._group.whole(logits, count)


def shared_logits(group: Group, scorers: Sequence[Scorer], packed: PackedSet, rows: Rows) -> list[Tensor]:
    """`compute_logits`, each rank scoring some of the rows; all get the whole."""
    own = compute_logits(scorers, packed, rows[group.own_rows(len(rows))])
    return [group.whole(logits_MK, len(rows)) for logits_MK in own]
