"""The public data set of the shipped specs, downloaded."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.download import MIRFLICKR, download


def data(folder: Path) -> int:
    """Download MIRFLICKR-25000 and its annotations into `folder`; print where each file lies."""
    for path in download(MIRFLICKR, folder):
        print(path)
    return 0
