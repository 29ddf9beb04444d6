"""Processes timed side by side: medians with their range, and the memory of all their processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ["LABELGRID_SHARED"]) if os.environ.get("LABELGRID_SHARED") else None
JOBS = [sys.executable, "-m", "jobs"]


@dataclass(frozen=True)
class Scale:
    """How much is measured; a smoke run only shows that it can be."""

    smoke: bool = False

    def of(self, full: int, smoke: int) -> int:
        return smoke if self.smoke else full


@dataclass
class Timing:
    """Repeats of one thing."""

    seconds: list[float] = field(default_factory=list)
    began: list[float] = field(default_factory=list)  # as files' times count
    mib: float = 0.0  # peak of all its processes together
    printed: str = ""  # by the last repeat

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def text(self) -> str:
        return spread(self.seconds, " s")


def spread(values: Sequence[float], unit: str = "") -> str:
    """`median [lowest-highest]`, with digits that mean something."""
    digits = 2 if statistics.median(values) < 20 else 0
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle}{unit} [{low}-{high}]" if len(values) > 1 else f"{middle}{unit}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median and range of the ratios of measurements taken next to each other."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)]) + " x"


def once(
    command: Sequence[str], cwd: Path, into: Timing, before: Callable[[], None] = lambda: None, **more: str
) -> Timing:
    """Run it once more; its time, memory and output go into `into`."""
    before()
    into.began.append(time.time())
    started = time.perf_counter()
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**more),
    )
    watcher = threading.Thread(target=_watch_memory, args=(process, into))
    watcher.start()
    into.printed, _ = process.communicate()
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: failed with {process.returncode}\n{into.printed[-2000:]}")
    into.seconds.append(seconds)
    return into


def timed(command: Sequence[str], cwd: Path, repeats: int) -> Timing:
    run = Timing()
    for _ in range(repeats):
        once(command, cwd, run)
    return run


def environment(**more: str) -> dict[str, str]:
    # users' Python keeps what it compiles; where it must not, each start compiles this project anew
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **more}


def _watch_memory(process: subprocess.Popen, into: Timing) -> None:
    """The highest sum of proportional set sizes of a process and its descendants, sampled."""
    while process.poll() is None:
        into.mib = max(into.mib, sum(_pss_kib(pid) for pid in _family(process.pid)) / 1024)
        time.sleep(0.4)  # reading the sizes of a large process holds it up


def _family(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def _pss_kib(pid: int) -> int:
    try:
        return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
    except (OSError, TypeError):
        return 0


def source(folder: Path, scale: Scale) -> Path:
    """The real photographs where there are any; else, and for a smoke run, drawn ones."""
    if SHARED and not scale.smoke:
        return SHARED / "data" / "mirflickr-10k.zip"
    sys.path.insert(0, str(ROOT))
    from pipeline.data.drawn import draw

    return draw(folder, images=scale.of(2000, 120), test_images=10, size_px=scale.of(128, 32)).train


def labelled_folder(root: Path, images: int, scale: Scale) -> Path:
    """`images/` and `annotations/` of the first labelled images, which every peer reads as it is."""
    import zipfile

    folder = root / f"first-{images}"
    if folder.exists():
        return folder
    archive = zipfile.ZipFile(source(root, scale))
    names = sorted(n for n in archive.namelist() if n.startswith("annotations/") and n.endswith(".txt"))
    lists = {Path(n).name: [int(v) for v in archive.read(n).split()] for n in names}
    chosen = sorted({number for numbers in lists.values() for number in numbers})[:images]
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number in chosen:
        (folder / "images" / f"im{number}.jpg").write_bytes(archive.read(f"images/im{number}.jpg"))
    for name, numbers in lists.items():
        kept = [number for number in numbers if number in set(chosen)]
        (folder / "annotations" / name).write_text("".join(f"{number}\n" for number in kept))
    return folder


AUGMENT = "{hflip: 0.5, crop: [0.08, 1], rotate_deg: 25}"  # as the peers do it


def spec(root: Path, name: str, text: str, data: Path, px: int = 128) -> Path:
    """A project's spec; `text` is its train section and what follows."""
    path = root / "experiments" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"data: {{source: {data}, images: 'images/im{{id}}.jpg', size_px: {px}, negatives: {{train: drop}}}}\n{text}\n"
    )
    return path


def forget(root: Path) -> None:
    """As before the first run: no packed data, no results."""
    shutil.rmtree(root / "data", ignore_errors=True)
    for folder in (root / "experiments").glob("*/"):
        shutil.rmtree(folder)


def epochs(root: Path, name: str) -> list[dict]:
    """The rows of every cell's epochs."""
    paths = sorted(root.glob(f"experiments/{name}/*/metrics.jsonl"))
    rows = [json.loads(line) for path in paths for line in path.open()]
    return [row for row in rows if "validation/loss" in row]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)
