"""The best epoch by `train.monitor`: its weights are kept, and training ends once it lies too far back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from pipeline.data.transfer import tensors_to_host, wait_for_copies
from pipeline.metrics.thresholds import tune_per_label
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.scoring import Scored
from pipeline.spec import LOWER_IS_BETTER
from pipeline.storage.run_dir import RunDir
from pipeline.storage.write_behind import Writer


@dataclass(frozen=True)
class BestEpoch:
    """The monitored value of the best epoch, counted from 1; its validation loss decides between equal values.

    `waited` counts the epochs since then that could have been better.
    """

    value: float
    epoch: int
    loss: float = math.inf
    waited: int = 0

    def is_beaten_by(self, monitor: str, value: float, loss: float) -> bool:
        """Whether an epoch is better than this one by `monitor`."""
        if value == self.value:
            return loss < self.loss
        return value < self.value if monitor in LOWER_IS_BETTER else value > self.value


class BestKeeper:
    """Keeps the best epoch: its value, its weights until they are saved, its validation scores.

    `description` is written beside the weights: all that predicting needs, so that nothing is mismatched.
    """

    def __init__(self, run: RunDir, monitor: str, description: Mapping[str, Any], writer: Writer) -> None:
        self.run, self.monitor, self.description, self.writer = run, monitor, description, writer
        self.best: BestEpoch | None = None
        self.scored: Scored | None = None  # the best epoch's validation, where this process did it
        self.thresholds_saved = False  # whether the saved weights have their thresholds with them
        self._unsaved: dict[str, Tensor] | None = None

    def offer(self, epoch: BestEpoch, net: nn.Module, scored: Scored, *, informative: bool) -> bool:
        """Take an epoch's network and scores as the best, if it beats the best so far; whether it did.

        One that is not `informative` (no label was decided yet) does not count as waiting.
        """
        if self.best is None or self.best.is_beaten_by(self.monitor, epoch.value, epoch.loss):
            self.best = epoch
            self._unsaved = tensors_to_host(net.state_dict())
            self.scored = scored
            return True
        self.best = replace(self.best, waited=self.best.waited + informative)
        return False

    def patience_is_over(self, patience_epochs: int | None) -> bool:
        """Early stopping: whether so many epochs in which the best could have been beaten did not do it."""
        return patience_epochs is not None and self.best is not None and self.best.waited >= patience_epochs

    def save_if_new(self, scored: Scored | None) -> None:
        """Write the best weights where they are not saved yet; with final scores if they are known."""
        if self._unsaved is not None:
            wait_for_copies()
            self.save(self._unsaved, scored)
            self._unsaved = None

    def save(self, model: dict[str, Tensor], scored: Scored | None) -> None:
        """Write checkpoint_best.pt; with the final validation scores, thresholds are tuned on these."""
        assert self.best is not None
        self.run.check_owned()
        thresholds = None
        if scored is not None:
            thresholds = {"per_label": tune_per_label(scored.scores_NK, scored.targets_NK).tolist()}
        state = {**self.description, "model": model, "best": asdict(self.best), "thresholds": thresholds}
        save_checkpoint(self.run.checkpoint_best, state, writer=self.writer)
        self.thresholds_saved = scored is not None
