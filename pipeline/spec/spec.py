"""The whole spec: one question, as the sections of a YAML file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.spec.data import DataSpec
from pipeline.spec.evaluate import EvaluateSpec, SubmissionSpec
from pipeline.spec.fields import Section
from pipeline.spec.grid_section import GridSpec
from pipeline.spec.run import RunSpec
from pipeline.spec.train import TrainSpec


class Spec(Section):
    """One question: a data set, a recipe, and the grid of variations to compare."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The folder of results under `experiments/`. Default: the name of the spec's file."""
    data: DataSpec
    """The data set: a mapping, or the path of a YAML file that holds it, so that specs can share it."""
    train: TrainSpec = TrainSpec()
    """The recipe: all that a cell's weights depend on besides its data."""
    grid: GridSpec = GridSpec()
    """The variations to compare. Without it the spec is one cell."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """How scores become decisions, and which metric ranks the cells."""
    submission: SubmissionSpec = SubmissionSpec()
    """Whose scores become the submission."""
    run: RunSpec = RunSpec()
    """How cells are run: device, saves, cluster resources. It never changes a result."""

    @model_validator(mode="after")
    def _shared_batches(self) -> Spec:
        ranks = self.run.gpus_per_cell
        if self.train.batch_size < ranks:
            raise ValueError(
                f"train.batch_size: {self.train.batch_size} has not a picture for each of run.gpus_per_cell: {ranks}; "
                "write a larger batch, or fewer GPUs"
            )
        if self.grid.share_process is True and ranks > 1:
            raise ValueError(
                f"grid.share_process: true trains cells together on one GPU, run.gpus_per_cell: {ranks} one cell on "
                "several; leave one of them out"
            )
        return self
