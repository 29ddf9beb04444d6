"""What this process may use of its host. Torch-free."""

from __future__ import annotations

import os


def cores() -> int:
    """CPU cores this process may run on (a Slurm job sees its own, not the node's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
