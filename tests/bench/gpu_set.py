"""What the sections of `make bench-gpu` share: pictures that need no download, specs on them, learners, results."""

from __future__ import annotations

import functools
import itertools
import json
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from measure import Scale

_DRAWN = 48  # different pictures; the others are these, shifted and brighter or darker
_SMALL = 1024, 256  # training and validation images where a result is looked at, not its time
_FULL = 7683, 2500  # as the original's


@dataclass(frozen=True)
class Check:
    """Something that must hold on any GPU."""

    name: str
    holds: bool
    found: str


@dataclass
class Result:
    """What a section found: tables by title, figures that may have a goal, checks."""

    tables: dict[str, str] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """Where the sections work, and at which size."""

    root: Path
    profile: Path
    smoke: bool = False

    @property
    def scale(self) -> Scale:
        return Scale(self.smoke)

    @property
    def px(self) -> int:
        return self.scale.of(224, 32)

    @property
    def larger_px(self) -> int:
        """Of pictures that are cropped."""
        return self.scale.of(256, 40)

    @property
    def network(self) -> str:
        return "resnet34" if not self.smoke else "cnn2"

    @property
    def norm_network(self) -> str:
        """A network with batch norm."""
        return "resnet34" if not self.smoke else "cnn3"

    @property
    def batch_sizes(self) -> tuple[int, int]:
        return (256, 64) if not self.smoke else (32, 16)

    def images(self, small: bool = False) -> tuple[int, int]:
        """For training and for validation."""
        if self.smoke:
            return 40, 16
        return _SMALL if small else _FULL

    @property
    def pictures(self) -> Path:
        return self.root / "pictures.zip"


def make_pictures(bench: Bench) -> None:
    """A zip of JPEGs with labels, as a user has one, and lists that divide them."""
    import cv2

    from pipeline.data.drawn import draw_image

    px, count = bench.larger_px, sum(bench.images())
    numbers, drawn = itertools.count(1), []
    while len(drawn) < bench.scale.of(_DRAWN, 12):
        picture, labels = draw_image(next(numbers), px, 0)
        if labels:
            drawn.append((np.asarray(picture), labels))
    rng = np.random.default_rng(0)
    shifts, gains = rng.integers(0, px, (count, 2)), rng.uniform(0.6, 1.3, count)

    def encoded(i: int) -> bytes:
        pixels = np.roll(drawn[i % len(drawn)][0], tuple(shifts[i]), axis=(0, 1))
        done, body = cv2.imencode(".jpg", cv2.convertScaleAbs(pixels, alpha=gains[i])[..., ::-1])
        assert done
        return body.tobytes()

    with zipfile.ZipFile(bench.pictures, "w") as archive, ThreadPoolExecutor() as pool:
        for i, body in enumerate(pool.map(encoded, range(count)), 1):
            archive.writestr(f"images/im{i}.jpg", body)
        for label in sorted(set().union(*(labels for _, labels in drawn))):
            own = [i + 1 for i in range(count) if label in drawn[i % len(drawn)][1]]
            archive.writestr(f"annotations/{label}.txt", "".join(f"{i}\n" for i in own))
    for name, small in (("full", False), ("small", True)):
        train, validation = bench.images(small)
        lists = {"train": range(1, train + 1), "validation": range(count - validation + 1, count + 1)}
        for part, ids in lists.items():
            (bench.root / f"{name}-{part}.txt").write_text("".join(f"{i}\n" for i in ids))


def write_spec(
    bench: Bench, name: str, train: dict[str, Any], *, small: bool = False, more: str = "", **where: Any
) -> Path:
    """A project's spec; `where` may name another `root` than the bench's, and the pictures' `size_px`."""
    folder = where.get("root", bench.root) / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    lists = {
        part: str(bench.root / f"{'small' if small else 'full'}-{part}.txt")
        for part in ("train", "validation")
    }
    data = {
        "source": str(bench.pictures),
        "images": "images/im{id}.jpg",
        "size_px": where.get("size_px", bench.px),
        "split": {"method": "lists", **lists},
    }
    settings = {"model": {"name": bench.network}, "image_px": bench.px, **train}
    path = folder / f"{name}.yaml"
    path.write_text(f"data: {json.dumps(data)}\ntrain: {json.dumps(settings)}\n{more}\n")
    return path


def planned(path: Path, *overrides: str) -> list[Any]:
    """The cells of a spec."""
    from jobs.planning.plan import make_plan
    from pipeline.spec.reading import read_spec

    return make_plan(read_spec(path, overrides)).cells


@functools.cache
def _opened(packed: Path) -> Any:
    from pipeline.data.packed import PackedSet

    return PackedSet.open(packed, verify=False)  # packed a moment ago


_runs = itertools.count()


def make_learner(path: Path, *overrides: str, again: Path | None = None) -> Any:
    """The first cell of a spec as a learner in this process, in a folder of its own (or in that of `again`)."""
    from pipeline.data.splits import read_split
    from pipeline.storage.run_dir import RunDir
    from pipeline.training.attempt import Attempt
    from pipeline.training.learner import CellData, Learner

    cell = planned(path, *overrides)[0]
    run = RunDir(again or path.parent.parent / "runs" / f"{path.stem}-{next(_runs)}")
    run.path.mkdir(parents=True, exist_ok=True)
    split = read_split(cell.data.split_file)
    data = CellData(_opened(cell.data.packed), split.train, split.validation)
    return Learner(cell.cell.spec, Attempt(run, cell.identity), data, weights=None)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronise() -> None:
    """Until the device has done what it was asked for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def now() -> float:
    """The clock, once the device has done what it was asked for."""
    synchronise()
    return time.perf_counter()


def forget_everything() -> None:
    """As in a new process: no pixels on the GPU, nothing that torch caches, no peak."""
    import gc

    import torch

    from pipeline.data.pixel_cache import forget_pixels

    forget_pixels()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def train_whole(learners: Sequence[Any]) -> None:
    """To the last epoch; raises what went wrong."""
    from pipeline.training.loop import train
    from pipeline.training.stop_signal import StopFlag

    train(learners, StopFlag())
    for one in learners:
        one.tracker.close()
        if one.attempt.error:
            raise one.attempt.error
