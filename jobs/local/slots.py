"""How many jobs this machine runs at once, with how many threads each, on which GPUs. Torch-free."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

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
        gets the same number of threads, and so the same bits.
        """
        usable = cores()
        gpus = () if device == "cpu" else visible_gpus()
        count = parallel or len(gpus) or max(1, min(cells, usable))
        return cls(count=count, threads=threads or max(1, usable // count), gpus=gpus)

    @property
    def places(self) -> list[str | None]:
        """The GPU of each job that runs at once; None without."""
        return [self.gpus[i % len(self.gpus)] if self.gpus else None for i in range(self.count)]


def visible_gpus() -> tuple[str, ...]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part for part in named.split(",") if part and part != "-1")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(i) for i in range(len(gpus))) if listed.returncode == 0 else ()
