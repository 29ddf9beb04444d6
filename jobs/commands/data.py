"""The public data set of the shipped specs, downloaded."""

from __future__ import annotations

from pathlib import Path

from jobs.local.progress import shown
from pipeline.data.download import MIRFLICKR, download


def data(folder: Path) -> str:
    """Download MIRFLICKR-25000 and its annotations into `folder`: the path of each file, one a line."""
    with shown():
        return "\n".join(map(str, download(MIRFLICKR, folder)))
