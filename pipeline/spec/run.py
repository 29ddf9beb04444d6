"""The `run:` section: how cells are run, which never changes what they are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.spec.fields import Count, Positive, Section


class ResourceRule(Section):
    """What the cells that match `when` ask of a cluster instead of its profile's `train`."""

    when: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys and the values they must have, e.g. `{train.model.name: resnet34}`. {}: every cell."""
    partition: str | None = None
    """The Slurm partition of these cells. null, here and below: as the profile or an earlier rule says."""
    time_min: Count | None = None
    """The time limit of their jobs, in minutes."""
    cpus: Count | None = None
    """The CPU cores of a job."""
    mem_gb: Positive | None = None
    """The memory of a job, in GiB. Raise it for cells that are held back as out of memory."""
    gres: str | None = None
    """Slurm's generic resources of a job, e.g. `gpu:v100:1`."""
    cells_per_job: Count | None = None
    """How many cells one job trains. Raise it where cells are short and jobs wait long in the queue."""
    concurrent_cells: Count | None = None
    """How many of a job's cells run at the same time, sharing its GPU and cores."""


class RunSpec(Section):
    """How cells are run here; never changes what they are."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run. `auto` is the GPU if there is one, else the CPU."""
    parallel: Count | None = None
    """Cells at once on this machine. null: one for each GPU, without GPUs one for each core."""
    threads: Count | None = None
    """CPU threads of each cell on this machine. null: the cores divided by the cells at once."""
    save_every_min: Positive = 10.0
    """Minutes between saves of the training state within an epoch. A kill loses at most about as much."""
    save_fraction: Positive = 0.02
    """The largest fraction of the time that saving may take; a save waits while it would take more."""
    resources: tuple[ResourceRule, ...] = ()
    """Rules for what cells ask of a cluster. Where several rules match a cell, the later one wins."""
    budget_units: Positive | None = None
    """The most a grid may cost, in the cluster's billing units. `grid` refuses to submit beyond it."""
