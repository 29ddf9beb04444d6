"""How time and memory of every stage grow with images N, labels K and cells C, and a set of ten million images.

    on_growth.py [--shrink 4] [--only Open StartLarge]

prints the tables alone, of this code or of an older checkout into which these files are copied; `--shrink`
divides what grows, for code that would take hours.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headlines import headline
from measure import Scale, environment, table

Sizes = dict[str, int]  # of N, K and C
Found = dict[str, float]  # seconds and mib
SPENT = "over {} s"
LIMIT_S = 600


@dataclass(frozen=True)
class Growth:
    """A stage at sizes of one axis, the others fixed; each four times the one before where that is not said."""

    what: str
    stage: str
    axis: str
    at: tuple[int, ...]
    fixed: Sizes
    smoke: tuple[int, ...] = ()

    def sizes(self, scale: Scale, shrink: int) -> list[Sizes]:
        grown = self.smoke if scale.smoke else [max(size // shrink, 2) for size in self.at]
        fixed = {name: min(size, 60) if scale.smoke else size for name, size in self.fixed.items()}
        return [fixed | {self.axis: size} for size in grown]


_N, _K, _C = (40, 80), (4, 8), (2, 3)  # of a smoke run
GROWTH = (
    Growth("labels read, wrangle's report", "Labels", "N", (10_000, 40_000, 160_000), {"K": 14}, _N),
    Growth("labels read, wrangle's report", "Labels", "K", (50, 200, 800), {"N": 5_000}, _K),
    Growth("a set opened and verified", "Open", "N", (20_000, 80_000, 320_000), {"K": 20}, _N),
    Growth("stratified split", "MakeSplit", "N", (20_000, 80_000, 320_000), {"K": 20}, _N),
    Growth("stratified split", "MakeSplit", "K", (20, 80, 320), {"N": 20_000}, _K),
    Growth("repeat-factor sampling", "Sampling", "N", (50_000, 200_000, 800_000), {"K": 20}, _N),
    Growth("repeat-factor sampling", "Sampling", "K", (20, 80, 320), {"N": 50_000}, _K),
    Growth("metrics of an epoch", "Metrics", "N", (20_000, 80_000, 320_000), {"K": 20}, _N),
    Growth("metrics of an epoch", "Metrics", "K", (20, 80, 320), {"N": 20_000}, _K),
    Growth("thresholds for F1 per image", "Thresholds", "N", (2_500, 10_000, 40_000), {"K": 20}, _N),
    Growth("thresholds for F1 per image", "Thresholds", "K", (25, 100, 400), {"N": 2_500}, _K),
    Growth("expected F1", "ExpectedF1", "N", (2_500, 10_000, 40_000), {"K": 20}, _N),
    Growth("expected F1", "ExpectedF1", "K", (25, 50, 100), {"N": 1_000}, _K),
    Growth("bootstrap of a cell", "Bootstrap", "N", (1_000, 4_000, 16_000), {"K": 14}, _N),
    Growth("bootstrap of a cell", "Bootstrap", "K", (14, 56, 224), {"N": 1_000}, _K),
    Growth("cells evaluated (2,500 x 14)", "Evaluate", "C", (6, 24, 96), {"N": 2_500, "K": 14}, _C),
    Growth("again, nothing new", "EvaluateAgain", "C", (24, 96), {"N": 2_500, "K": 14}, _C),
    Growth("again, one cell added", "EvaluateOneMore", "C", (24, 96), {"N": 2_500, "K": 14}, _C),
    Growth("submission written and checked", "Submission", "N", (10_000, 40_000, 160_000), {"K": 100}, _N),
    Growth("submission written and checked", "Submission", "K", (20, 80, 320), {"N": 40_000}, _K),
    Growth("plan, pictures in a folder", "Plan", "N", (1_000, 4_000, 16_000), {"K": 14}, _N),
    Growth("status, pictures in a folder", "Status", "N", (1_000, 4_000, 16_000), {"K": 14}, _N),
)
LARGE = (
    ("opened and verified", "Open"),
    ("random split, written and read", "RandomSplit"),
    ("repeat-factor sampling, an epoch's rows", "Sampling"),
    ("a training until its first batch", "Start"),
    ("a cell evaluated on as many images", "EvaluateLarge"),
    ("a submission written and checked", "Submission"),
)


def growth(root: Path, scale: Scale, only: Sequence[str] = (), shrink: int = 1) -> dict[str, str]:
    rows = [(one, one.sizes(scale, shrink)) for one in GROWTH if not only or one.stage in only]
    chosen = [(what, stage) for what, stage in LARGE if not only or f"{stage}Large" in only]
    large = [(what, stage, _large(stage, scale, shrink)) for what, stage in chosen]
    jobs = [(one.stage, each) for one, sizes in rows for each in sizes]
    jobs += [(stage, sizes) for _, stage, sizes in large]
    found = iter(together(root, jobs) if scale.smoke else [measured(root, *job) for job in jobs])
    head = ["stage", "grows", "sizes", "seconds", "exponent", "peak memory at the largest"]
    tables = [table(head, [_row(one, sizes, [next(found) for _ in sizes]) for one, sizes in rows])]
    body = []
    for (what, stage, sizes), one in zip(large, found, strict=True):
        body.append([_at(sizes), what, _seconds(one), _mib(one)])
        if stage == "Submission" and one:
            headline("submission of 1 M x 1,000, peak memory", [one["mib"]], 1024, unit="MiB", at_most=True)
    return {
        "growth": "\n\n".join([*tables, table(["images x labels", "stage", "seconds", "peak memory"], body)])
    }


def _large(stage: str, scale: Scale, shrink: int) -> Sizes:
    if stage == "Submission":
        return {"N": scale.of(1_000_000 // shrink, 200), "K": scale.of(1_000, 20)}
    images = scale.of(10_000_000 // shrink, 4_000)
    return {"N": images // 100 if stage == "EvaluateLarge" else images, "K": 20}


def _at(sizes: Sizes) -> str:
    return f"{sizes['N']:,} x {sizes['K']:,}"


def _row(one: Growth, sizes: Sequence[Sizes], found: Sequence[Found]) -> list[str]:
    fixed = ", ".join(f"{name} {size:,}" for name, size in sizes[0].items() if name != one.axis)
    grown = [each[one.axis] for each in sizes]
    done = [(size, each["seconds"]) for size, each in zip(grown, found, strict=True) if each]
    return [
        one.what,
        f"{one.axis} ({fixed})",
        ", ".join(f"{size:,}" for size in grown),
        ", ".join(map(_seconds, found)),
        f"{exponent(done):.2f}" if len(done) > 1 else "",
        _mib(found[-1]),
    ]


def exponent(done: Sequence[tuple[int, float]]) -> float:
    """The slope of the line through the logarithms of (size, seconds), by least squares."""
    x, y = ([math.log(pair[i]) for pair in done] for i in (0, 1))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def measured(root: Path, stage: str, sizes: Sizes) -> Found:
    """Seconds and MiB of a stage, prepared and measured in processes of its own; {} where it takes too long."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        _run("prepare", [(stage, str(folder), sizes)])
        (found,) = _run("measure", [(stage, str(folder), sizes)])
        print(f"{stage} {sizes}: {_seconds(found)} s, {_mib(found)}", file=sys.stderr, flush=True)
        return found
    except subprocess.TimeoutExpired:
        return {}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def together(root: Path, jobs: Sequence[tuple[str, Sizes]]) -> list[Found]:
    """All in one process, which shows that they work; their memory says nothing."""
    placed = [(stage, tempfile.mkdtemp(dir=root), sizes) for stage, sizes in jobs]
    return _run("both", placed)


def _run(step: str, jobs: Sequence[tuple[str, str, Sizes]]) -> list[Found]:
    command = [sys.executable, str(Path(__file__).with_name("growth_stages.py")), step, json.dumps(jobs)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise SystemExit(f"{step} {jobs}: failed with {done.returncode}\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"seconds"')]


def _seconds(found: Found) -> str:
    return f"{found['seconds']:.3g}" if found else SPENT.format(LIMIT_S)


def _mib(found: Found) -> str:
    return f"{found['mib']:,.0f} MiB" if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(growth(Path(folder), Scale(options.smoke), options.only, options.shrink)["growth"])


if __name__ == "__main__":
    main()
