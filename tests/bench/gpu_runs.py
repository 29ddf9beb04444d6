"""What a user starts: the grid of seven optimizers from its pictures to the report, and a cell that is killed."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_set import Bench, Check, Result, device, planned, write_spec
from measure import JOBS, ROOT, spread, table
from sections import OPTIMIZERS

from jobs.local.processes import ENVIRONMENT

_EPOCHS = 15
_PATIENCE_S = 150
_DISTANCE = 0.05  # of the validation loss, relative: between runs that are not held to one algorithm


def grid(bench: Bench) -> Result:
    """Seven optimizers in one process, all epochs."""
    return _grid_table(bench, bench.batch_sizes[0], bench.scale.of(_EPOCHS, 2))


def grid_small(bench: Bench) -> Result:
    """The same with the small batch: a few epochs, from which the others' time is extrapolated."""
    if bench.smoke:
        return Result(
            {"The grid with the small batch": "Left out at toy size: the code is that of the other."}
        )
    return _grid_table(bench, bench.batch_sizes[1], bench.scale.of(2, 1))


def _grid_table(bench: Bench, size: int, epochs: int) -> Result:
    parts, asked, cells = _grid(bench, size, epochs), bench.scale.of(_EPOCHS, 2), bench.scale.of(7, 2)
    images, whole = bench.images()[0], parts["all"] + (asked - epochs) * parts["epoch"]
    extrapolated = f" (extrapolated: {epochs} epochs took {parts['all']:.0f} s)" if epochs < asked else ""
    rows = [
        ["from `grid` to the report", f"{whole:.0f} s{extrapolated}"],
        ["images/s of all that", f"{cells * asked * images / whole:,.0f}"],
        ["images/s while training, by metrics.jsonl", spread(parts["rates"])],
        ["start and packing, until all networks are built", f"{parts['start']:.1f} s"],
        ["training", f"{parts['training']:.1f} s"],
        ["validation, epoch ends, saves, final scores", f"{parts['rest']:.1f} s"],
        ["leaderboard and report", f"{parts['end']:.1f} s"],
        ["start and packing, of the whole", f"{parts['start'] / whole:.0%}"],
    ]
    title = f"{cells} optimizers x {asked} epochs x {images:,} images, {bench.network} at {bench.px} px"
    return Result({f"{title}, batch {size}": table([f"batch {size}", ""], rows)}, {f"grid {size}": [whole]})


def _grid(bench: Bench, size: int, epochs: int) -> dict[str, Any]:
    """Seconds of each part of `python -m jobs grid`, in a project without packed data or results."""
    root = bench.root / f"grid-{size}"
    optimizers = list(OPTIMIZERS.items())[: bench.scale.of(7, 2)]
    cells = []
    for name, optimizer in optimizers:
        schedule = ", train.schedule: {name: cosine}" if name == "sgd-cosine" else ""
        cells.append(f"{{train.optimizer: {optimizer}{schedule}}}")
    settings = {"epochs": epochs, "batch_size": size}
    path = write_spec(bench, "grid", settings, root=root, more=f"grid: {{cells: [{', '.join(cells)}]}}\n")
    started = time.time()
    done = subprocess.run([*JOBS, "grid", str(path)], cwd=root, capture_output=True, text=True)
    ended = time.time()
    if done.returncode:
        logs = "".join(log.read_text()[-1000:] for log in root.glob("experiments/grid/*/log.txt"))
        raise SystemExit(
            f"grid: failed with {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}\n{logs}"
        )
    built = max(file.stat().st_mtime for file in root.glob("experiments/grid/*/provenance.json"))
    trained = max(file.stat().st_mtime for file in root.glob("experiments/grid/*/manifest.json"))
    training, rates = _training(bench, root, len(optimizers))
    return {
        "all": ended - started, "start": built - started, "end": ended - trained, "rates": rates,
        "training": training, "rest": trained - built - training, "epoch": (trained - built) / epochs,
    }  # fmt: skip


def _training(bench: Bench, root: Path, cells: int) -> tuple[float, list[float]]:
    """Seconds in steps, and images/s of each epoch after the first: of the process, or of all that ran at once."""
    from measure import epochs

    seconds, by_epoch = 0.0, {}
    for row in epochs(root, "grid"):
        by_epoch.setdefault(row["epoch"], []).append(row["train/images_per_s"])
    for rates in by_epoch.values():  # cells of one process say the same rate: of all of them
        seconds += cells * bench.images()[0] / statistics.mean(rates)
    return seconds, [
        statistics.mean(rates) for epoch, rates in sorted(by_epoch.items()) if epoch > 1 or len(by_epoch) == 1
    ]


# ---------------------------------------------------------------- killed and resumed


def kill(bench: Bench) -> Result:
    """A training process killed by SIGKILL within an epoch and started again, against one left alone."""
    result, rows = Result(), []
    modes = (True, False) if device() == "cuda" else (True,)
    cells = {
        (kind, exact): _cell(bench, kind, exact)
        for exact in modes
        for kind in (("whole", "killed") if exact else ("whole", "again", "killed"))
    }
    # all at once: nothing is timed, and each has its own folder
    running = {key: _start(bench, cell, len(cells)) for key, cell in cells.items()}
    stopped = _kill({key: (cells[key], running[key]) for key in cells if key[0] == "killed"})
    for key in stopped:
        running[key] = _start(bench, cells[key], len(stopped))
    for key, process in running.items():
        status = process.wait(timeout=_PATIENCE_S)
        assert process.stdin is not None
        process.stdin.close()
        if status:
            raise SystemExit(f"{key}: ended with {status}\n{cells[key].run.log.read_text()[-2000:]}")
    for exact in modes:
        whole, killed = cells["whole", exact], cells["killed", exact]
        off, loss = _between(whole, killed)
        step, steps = stopped["killed", exact], -(-bench.images()[0] // bench.scale.of(64, 4))
        found = "bit for bit" if off == 0 else f"weights within {off:.1e}, loss within {loss:.1e}"
        holds = step > 0 and (off == 0 if exact else loss <= _DISTANCE)
        found += "" if step > 0 else "; it was never killed"
        mode = "run.deterministic=true" if exact else "without"
        result.checks.append(Check(f"killed and resumed, {mode}", holds, found))
        twice = (
            ""
            if exact
            else "weights within {:.1e}, loss within {:.1e}".format(*_between(whole, cells["again", False]))
        )
        rows.append([mode, f"{step} (an epoch has {steps})", found, twice])
    head = ["run.deterministic", "killed behind the save of step", "against one left alone", "two left alone"]
    result.tables["Killed by SIGKILL and resumed"] = table(head, rows)
    return result


def _cell(bench: Bench, kind: str, exact: bool) -> Any:
    settings = {
        "model": {"name": "resnet18" if not bench.smoke else "cnn2"}, "epochs": bench.scale.of(3, 8),
        "batch_size": bench.scale.of(64, 4), "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    }  # fmt: skip
    often = bench.scale.of(5, 0) / 1000 or 1e-9  # minutes; at toy size behind each step
    run = f"run: {{deterministic: {str(exact).lower()}, save_every_min: {often:g}, save_fraction: 1000}}"
    (cell,) = planned(write_spec(bench, f"{kind}-{exact}", settings, more=run))
    cell.run.path.mkdir(parents=True, exist_ok=True)
    return cell


def _start(bench: Bench, cell: Any, processes: int) -> subprocess.Popen[bytes]:
    """Its training process, as `grid` starts one beside `processes` - 1 others."""
    from gpu_right import tasks  # torch, which the sections that only start processes do without

    from jobs.local.gpus import PER_GPU
    from jobs.stages import encode

    (task,) = tasks(bench, cell.run.path.parent.with_suffix(".yaml"))
    environment: Mapping[str, str] = {
        **os.environ,
        **ENVIRONMENT,
        PER_GPU: str(processes),
        "OMP_NUM_THREADS": "1",
    }
    with cell.run.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.stages"],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
        )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(encode(task).encode())
    process.stdin.flush()
    return process


def _kill(doomed: dict[Any, tuple[Any, subprocess.Popen[bytes]]]) -> dict[Any, int]:
    """SIGKILL of each behind its second save; the steps they will resume from, 0 of one that was too fast."""
    from pipeline.models.checkpoint import load_checkpoint

    until, steps = time.monotonic() + _PATIENCE_S, {}
    while len(steps) < len(doomed):
        for key, (cell, process) in doomed.items():
            ended = process.poll() is not None
            if key in steps or not (ended or cell.run.checkpoint_previous.exists()):
                continue
            process.send_signal(signal.SIGKILL)
            process.wait()
            steps[key] = 0 if ended else int(load_checkpoint(cell.run.checkpoint_last)["step"])
        if time.monotonic() > until:
            raise SystemExit(f"nothing was saved in {_PATIENCE_S} s")
        time.sleep(0.005)
    return steps


def _between(one: Any, other: Any) -> tuple[float, float]:
    """The largest difference of a weight at the end, and of the last validation loss (relative)."""
    from gpu_memory import _distance

    from pipeline.models.checkpoint import load_checkpoint
    from pipeline.storage.jsonl import read_jsonl

    weights = [load_checkpoint(each.run.checkpoint_last)["model"] for each in (one, other)]
    a, b = (
        [row for row in read_jsonl(each.run.metrics) if "validation/loss" in row][-1] for each in (one, other)
    )
    return _distance(*weights), abs(a["validation/loss"] / b["validation/loss"] - 1)
