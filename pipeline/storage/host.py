"""What this process may use of its host. Torch-free."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """CPU cores this process may run on (a Slurm job sees its own, not the node's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def node() -> str | None:
    """This host since its boot, told from every other and from itself before; None where the system does not say."""
    with contextlib.suppress(OSError):
        return f"{os.uname().nodename} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return None


def memory_available() -> int:
    """Bytes that this process can still take: of the host, and of its control groups (a job's limit)."""
    return max(0, min([_meminfo("MemAvailable"), *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Of each control group around this process that has a limit; file caches count as free."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            v2 = not controllers  # of the two versions
            if not v2 and "memory" not in controllers.split(","):
                continue
            limit, used = ("max", "current") if v2 else ("limit_in_bytes", "usage_in_bytes")
            group = (_CGROUPS if v2 else _CGROUPS / "memory") / name.lstrip("/")
            while group != _CGROUPS.parent:
                with contextlib.suppress(OSError, ValueError, StopIteration):  # no such group, or "max"
                    stat = (group / "memory.stat").read_text().splitlines()
                    cached = next(
                        int(entry.split()[1]) for entry in stat if entry.startswith("inactive_file ")
                    )
                    taken = int((group / f"memory.{used}").read_text()) - cached
                    yield int((group / f"memory.{limit}").read_text()) - taken
                group = group.parent


def _meminfo(name: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)
