"""The whole spec: one question, as the sections of a YAML file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
