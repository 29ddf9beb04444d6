"""On a Slurm cluster of this machine: planning, launch_lock and looking at 1,000 cells."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from measure import ROOT, Scale, environment, timed


def slurm(root: Path, scale: Scale) -> dict[str, str]:
    """Planning, launch_lock and looking at 1,000 cells on a real cluster, and what a chain of stages adds."""
    script, folder = ROOT / "tests" / "slurm" / "cluster.sh", root / "cluster"
    if subprocess.run([str(script), "up", str(folder)], stdout=subprocess.DEVNULL).returncode:
        print("no Slurm cluster here: its table stays as it was")
        return {}
    exports = subprocess.run(
        [str(script), "env", str(folder)], capture_output=True, text=True, check=True
    ).stdout
    for word in shlex.split(exports.replace("export ", "")):
        name, _, value = word.partition("=")
        os.environ[name] = value
    try:
        return {"slurm": slurm_table(root)}
    finally:
        subprocess.run([str(script), "purge", str(folder)], stdout=subprocess.DEVNULL)


def slurm_table(root: Path) -> str:
    from pipeline.data.drawn import draw

    source = draw(root, images=240, test_images=40, size_px=32)
    (root / "experiments").mkdir(exist_ok=True)
    settings = [
        *("cluster.account=project_2000000", "cluster.train.partition=gpu", "cluster.train.gres=gpu:v100:1"),
        *(
            "cluster.cpu.partition=small",
            "cluster.train.cpus=1",
            "cluster.cpu.cpus=1",
            "cluster.train.mem_gb=4",
        ),
    ]

    def verb(name: str, spec: str, repeats: int, *more: str) -> tuple[str, float]:
        command = [sys.executable, "-m", "jobs", name, spec, "--cluster", "slurm", "--set", *settings, *more]
        run = timed(command, root, repeats)
        return run.text, run.median

    def write(name: str, cells: int, epochs: int) -> str:
        path = root / "experiments" / f"{name}.yaml"
        path.write_text(
            f"data: {{source: {source.train}, images: 'images/im{{id}}.jpg', size_px: 32,"
            f" test: {{source: {source.test}, images: 'images/im{{id}}.jpg'}}}}\n"
            f"train: {{epochs: {epochs}, image_px: 32}}\ngrid: {{seeds: {list(range(cells))}}}\n"
        )
        return str(path)

    seven = write("seven", 7, 1)
    started = time.perf_counter()
    verb("submission", seven, 1)
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True, env=environment()).stdout.strip():
        time.sleep(0.2)
    whole = time.perf_counter() - started
    columns = ["sacct", "-X", "-n", "-P", "-o", "Start,End,JobName"]
    while "Unknown" in (
        text := subprocess.run(columns, capture_output=True, text=True, env=environment()).stdout
    ):
        time.sleep(0.2)  # accounting hears of an end a moment later
    rows = text.splitlines()
    spans = [
        tuple(time.mktime(time.strptime(t, "%Y-%m-%dT%H:%M:%S")) for t in row.split("|")[:2]) for row in rows
    ]
    busy = sum(
        1
        for second in range(int(min(s for s, _ in spans)), int(max(e for _, e in spans)))
        if any(s <= second < e for s, e in spans)
    )
    many = write("thousand", 1000, 1)
    plan_text, _ = verb("plan", many, 3)
    submit_text, _ = verb("grid", many, 1, "cluster.max_parallel=1")
    status_text, _ = verb("status", many, 3)
    files = len(list((root / "experiments" / "thousand" / "slurm").iterdir()))
    subprocess.run(["scancel", "-u", os.environ.get("USER", "root")], env=environment())
    return f"""| on a real cluster (Slurm on this machine) | |
|---|---|
| 7 cells, wrangle -> train array -> evaluate and submission, from `make submission` to the end | {whole:.1f} s |
| of that no job was running (scheduling) | {whole - busy:.1f} s |
| 1,000 cells: `make plan` | {plan_text} |
| 1,000 cells: `make grid` until all are queued | {submit_text} |
| 1,000 cells: `make status` | {status_text} |
| submitit's files just after that | {files} ({files / 1000:.2f} a cell; two more a cell when it has run) |"""
