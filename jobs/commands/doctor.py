"""What `doctor` tries, one check after another. Torch is asked in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.commands.data_lines import all_data, data_lines
from jobs.commands.doctor_own import own_results
from jobs.commands.doctor_weights import weights_checks
from jobs.commands.request import Request
from jobs.local.slots import Slots
from jobs.planning.overlaps import check_test_sets
from jobs.planning.plan import Plan, data_root, make_plan
from pipeline.data.packed import PackedSet
from pipeline.errors import LaunchError, PipelineError
from pipeline.spec import AugmentSpec, is_own
from pipeline.spec.timm_catalogue import PREFIX
from pipeline.storage.files import display_path, sha256_file

TORCH = """
import torch, torchvision
cuda = torch.cuda
gpu = f"{cuda.device_count()} x {cuda.get_device_name(0)}" if cuda.is_available() else "no GPU seen here"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {gpu}")
"""


@dataclass(frozen=True)
class Check:
    """One thing tried, and what was found."""

    what: str
    ok: bool
    result: str


def checks(request: Request) -> Iterator[Check]:
    """Every check, each whatever the others find."""
    yield Check("spec", True, display_path(request.loaded.path))
    try:
        plan = make_plan(request.loaded)
    except PipelineError as error:
        yield Check("data and weights", False, str(error))
        return
    yield Check("grid", True, f"{len(plan.cells)} cells, {len(plan.missing)} missing")
    evaluate = plan.loaded.spec.evaluate
    yield Check(
        "decision rule", True, evaluate.mismatch or f"tuned and ranked by one metric, {evaluate.select_by}"
    )
    yield (torch := _torch())
    yield from _gpus(request, plan)
    yield from _places(request, plan)
    yield from _quota(plan)
    yield from _data(plan)
    yield from (Check(*found) for found in weights_checks(plan))
    yield from _networks(plan) if torch.ok else ()
    yield from _features(plan) if torch.ok else ()
    yield from (Check("own code", *found) for found in own_results(plan)) if torch.ok else ()
    yield from _artifacts(plan)
    if request.profile.scheduler == "slurm":
        from jobs.commands.doctor_slurm import slurm_checks

        yield from slurm_checks(request, plan)


def _torch() -> Check:
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True)
    output = done.stdout.strip() or (done.stderr.strip().splitlines() or ["torch cannot be imported"])[-1]
    return Check("python", done.returncode == 0, f"{sys.executable}: {output}")


def _gpus(request: Request, plan: Plan) -> Iterator[Check]:
    """Where several train a cell, whether this machine has as many; a cluster's are checked with its jobs."""
    run = plan.loaded.spec.run
    if run.gpus_per_cell == 1 or request.profile.scheduler != "local":
        return
    try:
        slots = Slots.for_cells(
            len(plan.cells), run.parallel, run.threads, run.device, ranks=run.gpus_per_cell
        )
    except LaunchError as error:
        yield Check("GPUs of a cell", False, str(error))
        return
    kind = "GPUs" if slots.gpus else "processes on the CPU"
    yield Check("GPUs of a cell", True, f"{run.gpus_per_cell} {kind}, {slots.count} cells at once")


def _places(request: Request, plan: Plan) -> Iterator[Check]:
    """The disks that results and packed data will lie on, which a profile may put elsewhere; nothing is made there."""
    profile, results = request.profile, plan.experiment.path
    packed = data_root(plan.root) / "packed"
    if profile.runs_root and not results.exists():
        results = Path(profile.runs_root).expanduser() / results.name
    if profile.data_root and not packed.exists():
        packed = Path(profile.data_root).expanduser() / packed.name
    for what, place in (("results", results), ("packed data", packed)):
        existing = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
        stats = os.statvfs(existing)
        free, inodes = stats.f_bavail * stats.f_frsize / 1e9, stats.f_favail
        writable = os.access(existing, os.W_OK | os.X_OK)
        enough = free > 2 and (inodes == 0 or inodes > 20 * len(plan.cells) + 100)
        can = "can be written" if writable else f"cannot be written (no permission in {existing})"
        yield Check(
            what, writable and enough, f"{display_path(place)} {can}, {free:.1f} GB and {inodes:,} files free"
        )


def _quota(plan: Plan) -> Iterator[Check]:
    """A Lustre project's quota, which the free space of the whole file system does not show."""
    path = plan.experiment.path.resolve()
    place = str(next(p for p in (path, *path.parents) if p.exists()))
    if shutil.which("lfs") is None:
        return
    project = subprocess.run(["lfs", "project", "-d", place], capture_output=True, text=True).stdout.split()
    command = ["lfs", "quota", "-q", *(["-p", project[0]] if project and project[0] != "0" else []), place]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    # path, KiB used, soft and hard limit, grace, files used, soft and hard limit, grace; limit 0: none; `*`: over it
    numbers = [int(word.rstrip("*")) for word in output.split()[1:] if word.rstrip("*").isdigit()]
    if len(numbers) < 6:
        return
    kib, files = (
        (hard or soft) - used if hard or soft else None for used, soft, hard in (numbers[:3], numbers[3:6])
    )
    enough = (kib is None or kib > 2e6) and (files is None or files > 20 * len(plan.cells) + 100)
    space = "space without limit" if kib is None else f"{kib * 1024 / 1e9:.1f} GB left"
    number = "files without limit" if files is None else f"{files:,} files left"
    yield Check("quota", enough, f"{space}, {number} (lfs quota)")


def _data(plan: Plan) -> Iterator[Check]:
    for data in all_data(plan):
        try:
            if data.reason not in (None, "new split"):
                yield Check("data", True, data_lines(data))
                continue
            packed = PackedSet.open(data.packed, pixels="always")
            yield Check(
                "data", True, f"{display_path(data.packed)}: {len(packed)} images, every byte verified"
            )
        except PipelineError as error:
            yield Check("data", False, str(error))
    try:
        for note in check_test_sets(plan):
            yield Check("test set", True, note)
    except PipelineError as error:
        yield Check("test set", False, str(error))


def _networks(plan: Plan) -> Iterator[Check]:
    """Whether names of timm, the parts that are trained, and those with a rate of their own exist.

    Only the network itself knows.
    """
    from pipeline.models.build import build_model, head_of
    from pipeline.models.timm_networks import config_of
    from pipeline.training.optim import build_optimizer

    every = [cell.cell.spec.train for cell in plan.cells]
    for name in dict.fromkeys(train.model.name for train in every if train.model.name.startswith(PREFIX)):
        try:
            size = config_of(name).input_size[-1]
            yield Check("network", True, f"{name}: timm has it, for pictures of {size} px")
        except PipelineError as error:
            yield Check("network", False, str(error))
    every = [train for train in every if not is_own(train.model.name)]  # which are tried by themselves
    asked = [train for train in every if train.model.trainable != "all" or train.optimizer.groups]
    kinds = {(train.model, train.image_px, train.optimizer.groups): train.optimizer for train in asked}
    for (model, image_px, _), optimizer in kinds.items():
        try:
            net = build_model(model, 2, image_px)
            build_optimizer(optimizer, net, head_of(net, model.name))
            yield Check("network", True, f"{model.name} at {image_px} px, {model.trainable} is trained")
        except PipelineError as error:
            yield Check("network", False, str(error))


def _features(plan: Plan) -> Iterator[Check]:
    """What kept features take of the disk: of a head that takes maps it may be a hundred times the usual."""
    import torch

    from pipeline.models.build import build_model, frozen_part

    cells = {}
    for cell in plan.cells:
        train, data = cell.cell.spec.train, cell.data
        if train.cached_views is not None and data.images and not is_own(train.model.name):
            key = (train.model.name, train.model.trainable, train.model.head.name, train.image_px, data.split)
            cells[(*key, train.cached_views)] = (train, data)
    for train, data in cells.values():
        views = (train.cached_views or 1) if train.augment != AugmentSpec(hflip=0.0) else 1
        pictures = views * data.images.get("train", 0) + data.images.get("validation", 0)
        try:
            frozen = frozen_part(build_model(train.model, 2, train.image_px), train.model).eval()
            with torch.inference_mode():
                values = frozen(torch.zeros(1, 3, train.image_px, train.image_px)).numel()
        except PipelineError:
            continue  # which the check of networks tells
        free = shutil.disk_usage(next(p for p in data.packed.parents if p.exists())).free
        gb = 4e-9 * values * pictures
        result = (
            f"{values:,} of a picture, {pictures:,} pictures and views: {gb:,.1f} GB in fp32, half in bf16"
        )
        remedy = (
            ""
            if gb < free / 1e9
            else f"; only {free / 1e9:,.1f} GB are free: lower train.cached_views or image_px"
        )
        yield Check("kept features", gb < free / 1e9, f"{train.model.name}: {result}{remedy}")


def _artifacts(plan: Plan) -> Iterator[Check]:
    """Every artifact of every finished cell, by its digest."""
    finished = [cell for cell in plan.cells if cell.reason is None]
    damaged = [
        f"{cell.run.name}/{name}"
        for cell in finished
        for name, expected in cell.run.read_manifest()["files"].items()
        if sha256_file(cell.run.path / name) != expected["sha256"]
    ]
    result = f"{len(finished)} finished cells are complete"
    if damaged:
        result = f"{', '.join(damaged[:5])} differ from their digests"
    yield Check("artifacts", not damaged, result)
