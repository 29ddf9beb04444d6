"""`prune`: delete what neither a selection nor a resume needs, and packed sets that nobody here needs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from jobs.commands.request import Request
from jobs.commands.run import plural
from jobs.commands.stage import FAILED
from jobs.planning.packed_sets import Active, PackedFolder, find_needs
from jobs.planning.plan import data_root, make_plan
from jobs.slurm.queue import ended
from jobs.slurm.records import submitted_jobs
from jobs.slurm.sbatch import launch_lock
from pipeline.data.contents import contents_path
from pipeline.data.layout import FEATURES
from pipeline.storage.files import display_path, read_json_or_empty, write_json
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir, RunDir

_OLD_S = 3600.0  # a half-written set that nothing was written to for so long is of a killed process


def prune(request: Request) -> int:
    """Delete training states, kept features, replaced cells, old jobs, and packed sets that nobody needs."""
    plan = make_plan(request.loaded)
    experiment = plan.experiment
    with launch_lock(experiment):
        freed = sum(_training_states(cell.run) for cell in plan.cells if cell.reason is None)
        freed += _remove(experiment.path / "replaced")
        freed += sum(_remove(data.packed / FEATURES) for data in plan.datasets)  # made again where needed
        if request.profile.scheduler == "slurm":
            freed += _ended_jobs(experiment)
    print(f"freed {_size(freed)} in {display_path(experiment.path)}")
    return _packed_sets(request, data_root(plan.root))


# ---------------------------------------------------------------- packed sets


def _packed_sets(request: Request, data: Path) -> int:
    """List the packed sets with who needs them, then remove the others; exit status."""
    folders = find_needs(request.loaded, _active(request))
    packed = data / "packed"
    shared = packed.is_symlink()
    _print_list(packed, folders, "needed by nobody here" if shared else "goes: needed by nobody")
    needless = [folder for folder in folders if not folder.needed_by]
    if shared and needless:
        print(
            f"data/packed leads to {packed.resolve()}, where other projects may keep theirs: nothing is removed "
            f"there; {len(needless)} are needed by nobody in this project"
        )
    if shared:
        return 0
    freed, status = 0, 0
    for folder in needless:
        size, digest = folder.bytes, folder.digest  # of what is still there
        aside = packed / f".{folder.path.name}.pruned-{os.getpid()}"
        try:
            folder.path.rename(aside)  # gone at once: no process finds half a set
            shutil.rmtree(aside)
        except OSError as error:
            print(
                f"error: {folder.path}: cannot be removed: {error.strerror}; ask its owner", file=sys.stderr
            )
            status = FAILED
            continue
        _forget(data / "digests", digest)
        freed += size
    freed += sum(_remove(folder) for folder in packed.glob(".*") if _is_left_behind(folder))
    print(f"freed {_size(freed)} in {display_path(packed)}", flush=True)
    return status


def _print_list(packed: Path, folders: Sequence[PackedFolder], needless: str) -> None:
    total = sum(folder.bytes for folder in folders)
    print(f"{display_path(packed)}: {plural(len(folders), 'packed set')}, {_size(total)}")
    width = max((len(folder.path.name) for folder in folders), default=0)
    for folder in sorted(folders, key=lambda folder: -folder.bytes):
        first, *others = folder.needed_by or [""]
        more = f" and {len(others)} more" if others else ""
        why = f"stays: needed by {first}{more}" if first else needless
        print(f"  {folder.path.name.ljust(width)} {_size(folder.bytes):>9}  {why}", flush=True)


def _active(request: Request) -> Active:
    """Which of an experiment's jobs may be queued or running: all but those that Slurm says have ended."""

    def ask(experiment: ExperimentDir, jobs: Collection[str]) -> Collection[str]:
        if request.profile.scheduler != "slurm":
            return jobs
        over = _ended(experiment)
        return [job for job in jobs if job not in over]

    return ask


def _ended(experiment: ExperimentDir) -> set[str]:
    """The numbers of the ledger of which every job has certainly ended."""
    jobs = {job for event in read_jsonl(experiment.ledger) for job in submitted_jobs(event)}
    over = ended(jobs)
    return {job.job for job in over} - {job.job for job in jobs - over}


def _forget(digests: Path, digest: str) -> None:
    """Remove what is remembered of a set that is gone, which the next plan computes anew."""
    if not digest:
        return
    contents_path(digests, digest).unlink(missing_ok=True)
    for path in digests.glob("*.json"):
        if read_json_or_empty(path).get("digest") == digest:
            path.unlink(missing_ok=True)


def _is_left_behind(folder: Path) -> bool:
    try:
        newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:  # no folder, or gone by now
        return False
    return time.time() - newest > _OLD_S


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


# ---------------------------------------------------------------- one experiment


def _training_states(run: RunDir) -> int:
    """A finished cell needs no state to resume from; its best checkpoint stays."""
    manifest = run.read_manifest()
    freed = 0
    for path in (run.checkpoint_last, run.checkpoint_previous):
        if manifest["files"].pop(path.name, None) is not None:
            # first: a file that is gone and still listed would mean damage
            write_json(run.manifest, manifest)
            freed += _remove(path)
    return freed


def _ended_jobs(experiment: ExperimentDir) -> int:
    """submitit's files of jobs that have certainly ended, and code that no other job may run from.

    A job that Slurm does not know may be a colleague's, or one of another cluster: its files stay.
    """
    numbers = _ended(experiment)
    over = {job.split("_")[0] for job in numbers}
    every = {job.job for event in read_jsonl(experiment.ledger) for job in submitted_jobs(event)}
    alive = {job.split("_")[0] for job in every - numbers}
    freed = 0
    for path in experiment.slurm.glob("*") if experiment.slurm.exists() else ():
        if path.name.split("_")[0] in over - alive:
            freed += _remove(path)
    unknown = [p for p in experiment.slurm.glob("*_submitted.pkl") if p.name.split("_")[0] not in over]
    if not alive and not unknown:
        freed += _remove(experiment.code)
    else:
        print(f"{plural(len(alive), 'job')} may still be queued: their files and the code stay")
    return freed


def _remove(path: Path) -> int:
    """Bytes freed."""
    if path.is_dir() and not path.is_symlink():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
        return size
    if not (path.exists() or path.is_symlink()):
        return 0
    size = path.lstat().st_size
    try:
        path.unlink()
    except PermissionError:
        print(f"{display_path(path)}: stays: it is another user's", file=sys.stderr)
        return 0
    return size
