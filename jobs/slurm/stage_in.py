"""A packed set on the disk of the node that reads it: copied once, by whichever job of the node comes first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.layout import DATASET, is_complete, read_dataset


def stage_in(packed: Path, scratch: Sequence[str]) -> Path:
    """The packed set on the node's own disk, copied once per node; the shared one where there is no room.

    Only the files of the set itself are copied: splits are read where they are, and kept features are for
    all nodes, so they stay in the shared folder.
    """
    place = next((os.path.expandvars(name) for name in scratch if os.environ.get(name.lstrip("$"))), None)
    dataset = read_dataset(packed)
    if place is None or dataset is None:  # whoever opens it says what is wrong with it
        return packed
    folder = Path(place) / "labelgrid"
    target = folder / packed.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, packed.name) as alone:
            _remove_partial(folder, packed.name, alone=alone)
            if is_complete(target, dataset["digest"]):
                return target
            shutil.rmtree(target, ignore_errors=True)  # a purge has thinned it out
            size = (packed / DATASET).stat().st_size + sum(f["bytes"] for f in dataset["files"].values())
            if shutil.disk_usage(folder).free < 1.2 * size:
                print(f"{folder}: no room for {size / 1e9:.1f} GB; reading {packed}", flush=True)
                return packed
            started = time.monotonic()
            _copy(packed, [*dataset["files"], DATASET], folder / f".{packed.name}.{os.getpid()}", target)
            seconds = time.monotonic() - started
            print(f"staged {size / 1e9:.2f} GB to {target} in {seconds:.1f} s", flush=True)
    except OSError as error:
        print(f"{folder}: cannot hold the data ({error}); reading {packed}", file=sys.stderr, flush=True)
        return packed
    return target


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[bool]:
    """Wait for the other jobs of this node, which make the one copy; False on a disk without locks."""
    with (folder / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a copy too many, and no wrong one
            yield False
        else:
            yield True


def _copy(packed: Path, names: Sequence[str], temporary: Path, target: Path) -> None:
    """The files under the name `target`, all or none of them; nothing is left of a copy that breaks off."""
    try:
        temporary.mkdir()
        for name in names:
            shutil.copyfile(packed / name, temporary / name)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_partial(folder: Path, name: str, *, alone: bool) -> None:
    """Remove what killed processes have left; those that run hold the lock, or are to be found on this node."""
    for path in folder.glob(f".{name}.*"):
        process = path.name.rpartition(".")[2]
        if process.isdigit() and (alone or not Path("/proc", process).exists()):
            shutil.rmtree(path, ignore_errors=True)
