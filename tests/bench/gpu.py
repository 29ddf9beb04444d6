"""`make bench-gpu`: measures one GPU in under 8 minutes, and writes the tables of "On a GPU" in docs/performance.md.

Figures are medians with their range, by a clock that waits for the GPU. A goal that is missed is said; what is
wrong ends with status 1. `--only` runs some sections and writes no page; `--smoke` runs all of them at toy size,
on a CPU too, and judges no time. `--profile DIR` is where traces, tables and figures go.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpu_set import Bench, Check, Result, make_pictures, write_spec
from measure import JOBS, ROOT, environment, table

from jobs.local.processes import ENVIRONMENT

MARKER = "gpu"
SECTIONS = {  # in this order; each in a process of its own, so that none begins with another's memory
    "right": "gpu_right",
    "speed": "gpu_speed",
    "busy": "gpu_busy",
    "memory": "gpu_memory",
    "kill": "gpu_runs",
    "grid": "gpu_runs",
    "grid_small": "gpu_runs",
    "compiled": "gpu_speed",
}
MINUTES = 8
_LATEST_S = 60 * MINUTES - 60  # after which no section begins
_MOST_S = 270  # that a section may take: one that hangs leaves the others their time
_GOALS_BY_GPU = {"H200": 10_000, "H100": 8_500}  # images/s of the loop


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--profile", type=Path, default=ROOT / "data" / "bench-gpu")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # a section, in its process
    options = parser.parse_args()
    if options.child:
        return _child(*options.child)
    gpu = _gpu()
    if not gpu and not options.smoke:
        print(
            "error: no GPU is found; `tests/bench/gpu.py --smoke` runs at toy size without one",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        profile = Path(folder) / "profile" if options.smoke else options.profile.resolve()
        return _measure(Bench(Path(folder), profile, options.smoke), options.only, gpu)


def _gpu() -> dict[str, str | None]:
    """The variables of a process on the first GPU there is; none where there is none."""
    from jobs.local.gpus import gpu_environment, visible_gpus

    gpus = visible_gpus()
    return gpu_environment(gpus[0], 1) if gpus else {}


def _measure(bench: Bench, chosen: list[str], gpu: dict[str, str | None]) -> int:
    started, whole, spent = time.monotonic(), Result(), {}
    own = {**environment(**ENVIRONMENT), **gpu}  # without a GPU, the children of bench.py see none
    variables = {name: value for name, value in own.items() if value is not None}
    hardware = _prepare(bench, variables)
    spent["pictures"] = time.monotonic() - started
    print(f"{hardware}\n", flush=True)
    if bench.smoke:  # nothing is timed: one process for all; what did not come to its end there gets its own
        _run(bench, chosen, variables)
    for name in chosen:
        begun = time.monotonic()
        if begun - started > _LATEST_S and not bench.smoke:
            result = Result(
                {name: f"Left out: its time was over; `tests/bench/gpu.py --only {name}` measures it."}
            )
        else:
            result = _section(bench, name, variables)
        spent[name] = time.monotonic() - begun
        for title, text in result.tables.items():
            print(f"**{title}**\n\n{text}\n", flush=True)
        whole.tables |= result.tables
        whole.figures |= result.figures
        whole.checks += result.checks
    seconds = time.monotonic() - started
    parts = ", ".join(f"{name} {spent[name]:.0f} s" for name in spent)
    whole.tables["What was checked"] = table(
        ["check", "", "found"], [[c.name, "holds" if c.holds else "FAILED", c.found] for c in whole.checks]
    )
    print(f"**What was checked**\n\n{whole.tables['What was checked']}\n")
    text = f"{hardware}\n"
    if not bench.smoke:
        judged = goals(hardware, whole.figures, seconds)
        print(judged, end="\n\n")
        text += f"\n{judged}\n"
    text += "".join(f"\n**{title}**\n\n{body}\n" for title, body in whole.tables.items())
    text += f"\nMeasured in {seconds / 60:.1f} minutes: {parts}."
    print(f"measured in {seconds / 60:.1f} minutes: {parts}")
    if not bench.smoke:
        _keep(bench, whole, text, complete=chosen == list(SECTIONS))
    return int(any(not check.holds for check in whole.checks))


def _prepare(bench: Bench, variables: dict[str, str]) -> str:
    """Pictures, both packed sets with their splits; a line about the machine."""
    make_pictures(bench)
    for small in (False, True):
        for px in (bench.px, bench.larger_px):
            path = write_spec(bench, f"pack-{px}-{small}", {}, small=small, size_px=px)
            done = subprocess.run(
                [*JOBS, "wrangle", str(path)], cwd=bench.root, env=variables, capture_output=True
            )
            if done.returncode:
                raise SystemExit(f"wrangle: {(done.stdout + done.stderr).decode()[-2000:]}")
    return _section(bench, "hardware", variables).tables["hardware"]


def _section(bench: Bench, name: str, variables: dict[str, str]) -> Result:
    """A section's result, by a process of its own; one that breaks off is a failed check."""
    path = bench.root / f"{name}.json"
    status = 0 if path.exists() else _run(bench, [name], variables)
    if status == 0:
        found = json.loads(path.read_text())
        return Result(found["tables"], found["figures"], [Check(**one) for one in found["checks"]])
    said = (bench.root / "log.txt").read_text(errors="replace")[-6000:]
    print(f"section {name}: {status}\n{said}", file=sys.stderr, flush=True)
    last = (said.strip().splitlines() or [""])[-1].replace("|", "/")[:200]
    return Result({name: "Broke off."}, checks=[Check(f"section {name} ends", False, f"{status}: {last}")])


def _run(bench: Bench, names: list[str], variables: dict[str, str]) -> int | str:
    """Run sections in a process, which keeps the result of each in a file; how it ended, 0 if well."""
    settings = json.dumps({"root": str(bench.root), "profile": str(bench.profile), "smoke": bench.smoke})
    command = [sys.executable, str(Path(__file__).resolve()), "--child", ",".join(names), settings]
    with (bench.root / "log.txt").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=bench.root, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(timeout=_MOST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # and what it started
            process.wait()
            return f"more than {_MOST_S} s"


def _child(names: str, settings: str) -> int:
    """The sections themselves; the result of each goes to a file, as what it calls prints."""
    given: dict[str, Any] = json.loads(settings)
    bench = Bench(Path(given["root"]), Path(given["profile"]), given["smoke"])
    for name in names.split(","):
        (bench.root / f"{name}.json").write_text(json.dumps(asdict(_result(bench, name))))
    return 0


def _result(bench: Bench, name: str) -> Result:
    if name == "hardware":
        return Result({"hardware": hardware()})
    import torch

    from pipeline.training.dynamo_stub import install_dynamo_stub

    install_dynamo_stub()  # as in a training process; it gives way where it must
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    result: Result = getattr(importlib.import_module(SECTIONS[name]), name)(bench)
    return result


def hardware() -> str:
    """One line: when and on what."""
    import torch

    from pipeline.models.hardware import hardware as facts_of

    facts = facts_of("cuda" if torch.cuda.is_available() else "cpu")
    more = [f"{name} {facts[name]}" for name in ("driver", "cuda", "hip", "cudnn") if name in facts]
    memory = f" ({facts['memory_gb']} GB)" if "memory_gb" in facts else " (no GPU)"
    cores = len(os.sched_getaffinity(0))
    line = [f"{facts['name']}{memory}", *more, f"torch {torch.__version__}", f"{cores} cores"]
    return f"{datetime.date.today()}: {', '.join(line)}."


def goals(hardware: str, figures: dict[str, list[float]], seconds: float) -> str:
    """What was measured beside the goals; those in images/s and seconds are an H100's or H200's."""
    gpu = next((name for name in _GOALS_BY_GPU if name in hardware), None)
    known: list[tuple[str, str, float, bool]] = [
        ("the loop with its data, batch 256, images/s", "loop 256", _GOALS_BY_GPU.get(gpu or "", 0), False),
        ("of the bare step, batch 256", "ratio 256", 0.97, False),
        ("validation, images/s", "validation 256", 25_000 if gpu else 0, False),
        ("7 optimizers x 15 epochs, batch 256, s", "grid 256", 120 if gpu else 0, True),
        ("this measurement, s", "seconds", 60 * MINUTES, True),
    ]
    rows = []
    for what, name, goal, at_most in known:
        values = figures.get(name, [seconds] if name == "seconds" else [])
        asked = f"{'<=' if at_most else '>='} {goal:,g}" if goal else "none for this GPU"
        if not values:
            rows.append([what, asked, "not measured", ""])
            continue
        value = statistics.median(values)
        met = "met" if (value <= goal if at_most else value >= goal) else "missed"
        rows.append([what, asked, f"{value:,.4g}" if value < 1000 else f"{value:,.0f}", met if goal else ""])
    return table(["what", "goal", "measured", ""], rows)


def _keep(bench: Bench, whole: Result, text: str, *, complete: bool) -> None:
    """Tables and figures beside the traces; the page too after all sections."""
    from bench import write

    bench.profile.mkdir(parents=True, exist_ok=True)
    (bench.profile / "gpu.md").write_text(text + "\n")
    (bench.profile / "gpu.json").write_text(json.dumps(asdict(whole), indent=1) + "\n")
    if complete:
        write(MARKER, text)
    print(f"traces, tables and figures: {bench.profile}")


if __name__ == "__main__":
    sys.exit(main())
