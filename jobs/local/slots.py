"""How many jobs this machine runs at once, with how many threads each, on which GPUs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.local.gpus import usable_gpus
from pipeline.errors import LaunchError
from pipeline.storage.host import cores


@dataclass(frozen=True)
class Slots:
    """How many jobs run at once, with how many threads each, on which GPUs.

    With `ranks`, each is several processes on as many GPUs; a place names them all. Where a cell has more on other
    nodes, these begin at `first_rank`, and `meeting` is the word by which all of them know each other.
    """

    count: int
    threads: int
    gpus: tuple[str, ...] = ()
    ranks: int = 1
    first_rank: int = 0
    meeting: str = ""

    @classmethod
    def for_cells(
        cls, cells: int, parallel: int | None, threads: int | None, device: str, *, ranks: int = 1
    ) -> Slots:
        """As many cells at once as there are GPUs, else cores; the cores are shared out evenly.

        `cells` is the size of the whole grid, not of what is missing: a cell trained later alone
        gets the same number of threads, and so the same bits. Raises LaunchError where `device` is cuda
        and no GPU is found, or fewer than the `ranks` of a cell.
        """
        usable = cores()
        gpus = usable_gpus(device)
        if gpus and len(gpus) < ranks:
            raise LaunchError(
                f"run.gpus_per_cell: {ranks}: this machine has {len(gpus)}; lower it, or take a machine with more"
            )
        count = parallel or len(gpus) // ranks or max(1, min(cells, usable // ranks))
        return cls(count, threads or max(1, usable // (count * ranks)), gpus, ranks)

    @classmethod
    def for_stage(cls, threads: int | None, device: str, *, ranks: int = 1) -> Slots:
        """One stage, by as many as `ranks` processes where there are as many GPUs, else cores.

        It may do without a GPU also where `device` is cuda; a stage that cannot says so itself.
        """
        device = "cpu" if device == "cpu" else "auto"
        places = len(usable_gpus(device)) or cores()
        return cls.for_cells(1, 1, threads, device, ranks=min(ranks, places))

    @property
    def places(self) -> list[str | None]:
        """The GPU of each job that runs at once, or its GPUs with commas between; None without."""
        full = len(self.gpus) // self.ranks * self.ranks
        sets = [",".join(self.gpus[i : i + self.ranks]) for i in range(0, full, self.ranks)]
        return [sets[i % len(sets)] if sets else None for i in range(self.count)]

    def sharing(self, gpu: str) -> int:
        """How many jobs are on that GPU at once."""
        return self.places.count(gpu)
