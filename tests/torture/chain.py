"""Killing a project at random moments until it has come through, and what it must then equal."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from pipeline.data.layout import DATASET
from pipeline.models.checkpoint import load_checkpoint
from pipeline.storage.jsonl import read_jsonl
from tests.cells import PATIENCE_S, clean_environment, project

TIMES = ("train/images_per_s", "train/seconds_per_step")
STAGES = ("wrangle", "train", "evaluate", "predict", "submission")
GRID = (
    "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.05}]}}\n"
    "evaluate: {threshold: per_label}\n"
    "run: {parallel: 2, threads: 1, device: cpu, save_every_min: 1.0e-9, save_fraction: 1.0e+9}\n"
)
RECIPE = {"epochs": 8, "augment": {"crop": [0.5, 1], "rotate_deg": 10}, "schedule": {"name": "cosine"}}


def make_project(root, drawn_zip):
    return project(root, drawn_zip, GRID, **RECIPE)


def start(spec, root):
    """`python -m jobs submission SPEC`, in a session of its own."""
    with (root / "printed.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", "submission", str(spec)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=root,
            env=clean_environment(),
            start_new_session=True,
        )


def stage_of(root):
    """What the newest line of the ledger says is under way."""
    events = read_jsonl(root / "experiments" / "x" / "ledger.jsonl")
    if not events:
        return "wrangle"
    last = events[-1]
    if last["event"] == "ended":
        return "submission" if last.get("stage", "").startswith("predict") else "between"
    return "train" if last["event"] == "queued" else last.get("stage", "submission").split()[0]


def descendants(pid):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = dict(tuple(map(int, line.split())) for line in listed.splitlines())
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {pid})


def kill_once(spec, root, rng, wanted):
    """Start, kill at a random moment of stage `wanted`; the stage that was hit, None if all was done before."""
    process = start(spec, root)
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and stage_of(root) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    spans = {"wrangle": 2.5, "train": 7.0, "evaluate": 2.0, "predict": 4.0, "submission": 0.5}
    until = time.monotonic() + rng.uniform(0, spans[wanted])
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    hit = stage_of(root)
    family = descendants(process.pid)
    one = [rng.choice(family)] if family else []
    # mostly all at once, as when the power fails; else the starter alone, or one of its processes
    (victims,) = rng.choices([[process.pid, *family], [process.pid], one], weights=(6, 1, 1))
    killed = 0
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            pass
    alive = process.poll() is None or killed
    process.wait(timeout=PATIENCE_S)
    orphans = [pid for pid in family if Path(f"/proc/{pid}").exists()]
    limit = time.monotonic() + PATIENCE_S
    while any(running(pid) for pid in orphans) and time.monotonic() < limit:
        time.sleep(0.02)  # a cell whose starter died saves and stops
    return (hit if hit != "between" else "train") if killed and alive else None


def running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def finish(spec, root):
    process = start(spec, root)
    assert process.wait(timeout=PATIENCE_S) == 0, (root / "printed.txt").read_text()[-3000:]


def torture(root, drawn_zip, kills, seed):
    """Kill a new project `kills` times, let it finish, and return how often each stage was hit."""
    rng = random.Random(seed)
    spec = make_project(root, drawn_zip)
    hits = Counter()
    plan = sorted(rng.choices(STAGES, weights=(3, 6, 3, 3, 1), k=kills), key=STAGES.index)
    results = root / "experiments" / "x"
    for wanted in plan:
        # what was made already is taken away, so that the stage is at work when it is killed
        if wanted == "evaluate":
            (results / "leaderboard.csv").unlink(missing_ok=True)
        if wanted == "predict":
            for scores in results.glob("*/scores_test.npz"):
                scores.unlink()
        hit = kill_once(spec, root, rng, wanted)
        if hit is not None:
            hits[hit] += 1
    finish(spec, root)
    return hits


def outcome(root):
    """All that must be equal, by name."""
    results = root / "experiments" / "x"
    found = {}
    for name in ("leaderboard.csv", "comparisons.csv", "submission.csv"):
        found[name] = (results / name).read_bytes()
    found["selected"] = json.loads((results / "selected.json").read_text())["cell"]
    for cell in sorted(
        path.parent for path in results.glob("*/manifest.json") if path.parent.parent == results
    ):
        manifest = json.loads((cell / "manifest.json").read_text())
        found[f"{cell.name}/state"] = manifest["state"]
        for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
            state = load_checkpoint(cell / name)
            for key, value in state["model"].items():
                found[f"{cell.name}/{name}/{key}"] = value.numpy().tobytes()
            found[f"{cell.name}/{name}/best"] = state["best"]
        # a cell that was the best while another lay killed may have scored the test images too
        selected = ("scores_test.npz",) if cell.name == found["selected"] else ()
        for name in ("scores_val.npz", "report.json", "evaluation.npz", *selected):
            if (cell / name).exists():
                found[f"{cell.name}/{name}"] = (cell / name).read_bytes()
        rows = read_jsonl(cell / "metrics.jsonl")
        found[f"{cell.name}/curves"] = [{k: v for k, v in r.items() if k not in TIMES} for r in rows]
    # hidden ones are what killed wrangles left; the next wrangle removes those older than an hour
    for packed in sorted((root / "data" / "packed").glob("[!.]*")):
        for path in sorted(packed.glob("*.npy")) + sorted(packed.glob("split-*")):
            found[f"{packed.name}/{path.name}"] = path.read_bytes()
        assert (packed / DATASET).exists(), "half a packed set was left"
    return found


def differences(straight, killed):
    keys = straight.keys() | killed.keys()
    return sorted(key for key in keys if straight.get(key) != killed.get(key))
