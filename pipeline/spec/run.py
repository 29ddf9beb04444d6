"""The `run:` section: how cells are run, which never changes what they are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.spec.fields import Count, Positive, Section


class ResourceRule(Section):
    """What the cells that match `when`, or another stage, ask of a cluster instead of what its profile says."""

    stage: Literal["train", "wrangle", "final"] = "train"
    """The jobs meant: `train`, `wrangle` (packs the data), or `final` (the leaderboard and the submission)."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys and the values they must have, e.g. `{train.model.name: resnet34}`. {}: every cell."""
    partition: str | None = None
    """The Slurm partition of these jobs. null, here and below: as the profile or an earlier rule says."""
    time_min: Count | None = None
    """The time limit of a job, in minutes."""
    cpus: Count | None = None
    """The CPU cores of a job."""
    mem_gb: Positive | None = None
    """The memory of a job, in GiB. Raise it for cells that are held back as out of memory."""
    gres: str | None = None
    """Slurm's generic resources of a job, e.g. `gpu:v100:1`. An empty text asks for none."""
    gpus_per_node: Count | None = None
    """The GPUs of a job, where a site wants that instead of `gres`."""
    qos: str | None = None
    """The quality of service of a job."""
    constraint: str | None = None
    """Features that the node of a job must have, as Slurm's `--constraint`."""
    sbatch: dict[str, Any] = Field(default_factory=dict)
    """Any other option of sbatch by its long name, e.g. `{mail-type: END}`. An empty value drops an option."""
    cells_per_job: Count | None = None
    """How many cells one job trains. Raise it where cells are short and jobs wait long in the queue."""
    concurrent_cells: Count | None = None
    """How many of a job's cells run at the same time, sharing its GPU and cores."""

    @model_validator(mode="after")
    def _of_cells(self) -> ResourceRule:
        if self.stage != "train" and (self.when or self.cells_per_job or self.concurrent_cells):
            raise ValueError(
                f"when, cells_per_job and concurrent_cells are of cells; the {self.stage} job has none"
            )
        return self


class RunSpec(Section):
    """How cells are run here; never changes what they are."""

    @model_validator(mode="after")
    def _divides(self) -> RunSpec:
        if self.gpus_per_cell % self.nodes_per_cell:
            raise ValueError(
                f"gpus_per_cell: {self.gpus_per_cell} cannot be spread evenly over nodes_per_cell: "
                f"{self.nodes_per_cell}; write a multiple of it"
            )
        if self.compile and self.gpus_per_cell > 1:
            raise ValueError("compile: true is of cells on one GPU; leave it out, or set gpus_per_cell: 1")
        return self

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run. `auto` is the GPU if there is one, else the CPU."""
    parallel: Count | None = None
    """Cells at once on this machine. null: one for each GPU, without GPUs one for each core."""
    threads: Count | None = None
    """CPU threads of each cell on this machine. null: the cores divided by the cells at once."""
    gpus_per_cell: Count = 1
    """GPUs that train one cell together, each with a part of every batch. On a CPU: processes."""
    nodes_per_cell: Count = 1
    """Nodes of a cluster over which the GPUs of a cell are spread evenly."""
    deterministic: bool = False
    """`true` holds a GPU to algorithms that repeat their bits, if torch has any (the log names others). Slower."""
    compile: bool = False
    """`true` compiles networks with torch.compile: a slower start, perhaps faster steps. It needs a compiler."""
    save_every_min: Positive = 10.0
    """Minutes between saves of the training state within an epoch. A kill loses at most about as much."""
    save_fraction: Positive = 0.02
    """The largest fraction of the time that saving may take; a save waits while it would take more."""
    resources: tuple[ResourceRule, ...] = ()
    """Rules for what cells ask of a cluster. Where several rules match a cell, the later one wins."""
    account: str | None = None
    """The project that jobs are charged to. null: LABELGRID_ACCOUNT, SBATCH_ACCOUNT, then your config.yaml."""
    budget_units: Positive | None = None
    """The most a grid may cost in all, in billing units of its training jobs. `grid` refuses what may cost more."""
