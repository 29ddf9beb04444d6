"""What a killed cell resumes from: one value, written to and read from `checkpoint_last.pt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.data.loading import STREAM_VERSION
from pipeline.errors import CheckpointError
from pipeline.models.checkpoint import load_checkpoint, load_newest, save_checkpoint
from pipeline.storage.run_dir import RunDir
from pipeline.storage.write_behind import Writer

CHECKPOINT_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The whole state of training after `step` steps."""

    identity: str
    execution: dict[str, Any]  # ExecutionConfig
    epoch: int
    step: int
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    plateau: dict[str, Any]  # PlateauState
    best: dict[str, Any] | None  # BestEpoch
    metrics: str  # digest of metrics.jsonl up to this step
    loss_sum: float  # of the epoch so far, over `images`
    images: int
    random_state: Tensor
    version: int = CHECKPOINT_VERSION
    stream_version: int = STREAM_VERSION

    def save(self, run: RunDir, writer: Writer) -> None:
        """Write it atomically; the state before is kept, for a damaged one falls back to it."""
        save_checkpoint(run.checkpoint_last, dict(vars(self)), keep_as=run.checkpoint_previous, writer=writer)

    @classmethod
    def load(cls, run: RunDir, identity: str) -> tuple[TrainState | None, list[str]]:
        """The newest undamaged state (None: start anew), and what was wrong with those it ignored.

        A state whose best weights are lost is ignored too. Raises CheckpointError for a state of another
        cell or of another version.
        """
        stored, problems = load_newest(run.checkpoint_last, run.checkpoint_previous, identity)
        if stored is None:
            return None, problems
        if (stored["version"], stored["stream_version"]) != (CHECKPOINT_VERSION, STREAM_VERSION):
            raise CheckpointError(
                f"{run.checkpoint_last}: was begun by another version of the batch order or checkpoint; "
                f"going on would mix both. Delete {run.path} to train this cell anew"
            )
        state = cls(**stored)
        if state.best is not None:
            try:
                load_checkpoint(run.checkpoint_best)
            except CheckpointError as error:
                return None, [*problems, f"{error}; the best weights are lost, so this cell is trained anew"]
        return state, problems
