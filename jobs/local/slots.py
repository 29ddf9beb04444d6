"""How many jobs this machine runs at once, with how many threads each, on which GPUs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.local.gpus import usable_gpus
from pipeline.storage.host import cores


@dataclass(frozen=True)
class Slots:
    """How many jobs run at once, with how many threads each, on which GPUs."""

    count: int
    threads: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def for_cells(cls, cells: int, parallel: int | None, threads: int | None, device: str) -> Slots:
        """As many cells at once as there are GPUs, else cores; the cores are shared out evenly.

        `cells` is the size of the whole grid, not of what is missing: a cell trained later alone
        gets the same number of threads, and so the same bits. Raises LaunchError where `device` is cuda
        and no GPU is found.
        """
        usable = cores()
        gpus = usable_gpus(device)
        count = parallel or len(gpus) or max(1, min(cells, usable))
        return cls(count=count, threads=threads or max(1, usable // count), gpus=gpus)

    @property
    def places(self) -> list[str | None]:
        """The GPU of each job that runs at once; None without."""
        return [self.gpus[i % len(self.gpus)] if self.gpus else None for i in range(self.count)]

    def sharing(self, gpu: str) -> int:
        """How many jobs are on that GPU at once."""
        return self.places.count(gpu)
