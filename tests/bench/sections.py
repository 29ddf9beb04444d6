"""What is measured: each section gives the tables it fills, ours and the other taken in turn."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import zipfile
from multiprocessing import get_context
from pathlib import Path

from headlines import against, headline
from measure import (
    AUGMENT,
    JOBS,
    ROOT,
    SHARED,
    Scale,
    Timing,
    environment,
    epochs,
    forget,
    labelled_folder,
    once,
    ratio,
    source,
    spec,
    spread,
    table,
    timed,
)
from peers import PACKAGES, python_of, run

from jobs.local.processes import ENVIRONMENT

OPTIMIZERS = {  # as seed_style.py names them
    "adam": "{name: adam, lr: 1e-3}",
    "adam-1e-4": "{name: adam, lr: 1e-4}",
    "adamw": "{name: adamw, lr: 1e-3}",
    "rmsprop": "{name: rmsprop, lr: 1e-3, alpha: 0.9}",
    "adadelta": "{name: adadelta}",
    "sgd": "{name: sgd, lr: 0.01, momentum: 0.9}",
    "sgd-cosine": "{name: sgd, lr: 0.01, momentum: 0.9}",
}

# of the seven scripts: they differ in nothing but the update of the weights, which is cheap
_MEASURED = ("adam", "sgd")


def bare_decode(archive: str, out: str, px: int, workers: int) -> None:
    """Decode every picture of a zip on all cores and write the same array: what wrangle_jobs cannot do without."""
    with get_context("fork").Pool(workers, _open, (archive, out, px)) as pool:
        names = [n for n in zipfile.ZipFile(archive).namelist() if n.endswith(".jpg")]
        with Path(out).open("wb") as file:
            file.truncate(len(names) * 3 * px * px)
        starts = range(0, len(names), 64)
        pool.starmap(_decode, [(start, names[start : start + 64]) for start in starts], chunksize=1)


def _open(archive: str, out: str, px: int) -> None:
    global _archive, _out, _px
    _archive, _out, _px = zipfile.ZipFile(archive), out, px


def _decode(start: int, names: list[str]) -> None:
    from PIL import Image

    body = b""
    for name in names:
        image = Image.open(io.BytesIO(_archive.read(name))).convert("RGB")
        body += (image if image.size == (_px, _px) else image.resize((_px, _px))).tobytes()
    with Path(_out).open("r+b") as file:
        os.pwrite(file.fileno(), body, start * 3 * _px * _px)


def wrangle(root: Path, scale: Scale) -> dict[str, str]:
    archive, px = source(root, scale), scale.of(128, 32)
    path = spec(root, "bench", "train: {epochs: 1}", archive, px)
    cores = len(os.sched_getaffinity(0))
    bare = f"import sections; sections.bare_decode({str(archive)!r}, 'bare.bin', {px}, {cores})"
    ours, theirs = Timing(), Timing()
    for _ in range(scale.of(5, 1)):
        once([*JOBS, "wrangle", str(path)], root, ours, lambda: forget(root))
        there = f"{ROOT / 'tests' / 'bench'}"
        once([sys.executable, "-c", f"import sys; sys.path.insert(0, {there!r}); {bare}"], root, theirs)
    headline("wrangle against a bare decode", against(ours.seconds, theirs.seconds), 1.3, at_most=True)
    images = sum(name.endswith(".jpg") for name in zipfile.ZipFile(archive).namelist())
    rows = [
        ["`make wrangle`: decoded, checked, digested, labelled, in place", ours.text, f"{ours.mib:.0f} MiB"],
        [
            f"bare: the same pictures decoded by {cores} processes into the same array",
            theirs.text,
            f"{theirs.mib:.0f} MiB",
        ],
        ["ratio (goal 1.3 x)", ratio(ours.seconds, theirs.seconds), f"{ours.mib / theirs.mib:.2f} x"],
    ]
    return {"wrangle": table([f"{images:,} images to {px} px", "time", "peak memory, all processes"], rows)}


def start(root: Path, scale: Scale) -> dict[str, str]:
    archive, px = source(root, scale), scale.of(128, 32)
    lrs = [round(1e-4 * (i + 1), 6) for i in range(100)]
    many = spec(
        root,
        "hundred",
        f"grid: {{axes: {{train.optimizer: [{', '.join(f'{{name: adam, lr: {lr}}}' for lr in lrs)}]}}}}",
        archive,
        px,
    )
    repeats = scale.of(5, 1)
    torch = [sys.executable, "-c", "import torch"]
    commands = {"plan": [*JOBS, "plan", str(many)], "status": [*JOBS, "status", str(many)], "": torch}
    timings = {verb: Timing() for verb in commands}
    for _ in range(repeats):  # in turn: the ratio lasts longer than the machine's mood
        for verb, command in commands.items():
            once(command, root, timings[verb])
    rows = []
    for verb in ("plan", "status"):
        seconds, imports = timings[verb].seconds, timings[""].seconds
        headline(f"{verb} of 100 cells, of import torch", against(seconds, imports), 0.15, at_most=True)
        rows.append([f"`jobs {verb}`, 100 cells (goal 0.15 x)", timings[verb].text, ratio(seconds, imports)])
    rows.append(['`python -c "import torch"`', timings[""].text, ""])
    return {"start": table(["command", "time", "of importing torch"], rows)}


def train(root: Path, scale: Scale) -> dict[str, str]:
    """ResNet18 against the peers at their defaults, from start to trained and validated."""
    images = scale.of(1000, 100)
    data, px, network = labelled_folder(root, images, scale), scale.of(128, 32), "resnet18"
    text = (
        f"train: {{model: {{name: {network}}}, image_px: {px}, epochs: 1, batch_size: 64, augment: {AUGMENT}}}\n"
        "run: {parallel: 1}"
    )
    path = spec(root, "ours", text, data, px)
    installed = [peer for peer in PACKAGES if SHARED and python_of(peer)]
    peers = {peer: Timing() for peer in (installed[:1] if scale.smoke else installed)}
    said: dict[str, list[dict]] = {peer: [] for peer in peers}
    ours, our_train, validated = Timing(), [], []
    options = ("--n", str(images), "--size", str(px), "--bs", "64", "--model", network)
    for _ in range(scale.of(3, 1)):
        once([*JOBS, "grid", str(path)], root, ours, lambda: forget(root))
        our_train.append(epochs(root, "ours")[0]["train/images_per_s"])
        (manifest,) = root.glob("experiments/ours/*/manifest.json")  # last written when the cell is whole
        validated.append(manifest.stat().st_mtime - ours.began[-1])
        for peer, timing in peers.items():
            said[peer].append(run(peer, data, timing, *options))
    inside = in_process(root, "ours", rounds=scale.of(3, 1))
    rows = [
        [
            "labelgrid",
            spread(our_train),
            spread(inside["validation"]),
            spread(validated, " s"),
            ours.text,
            f"{ours.mib:.0f} MiB",
        ],
        *[
            [
                peer,
                spread([one["images_per_s"] for one in said[peer]]),
                spread([one["val_images_per_s"] for one in said[peer]]),
                timing.text,
                "",
                f"{timing.mib:.0f} MiB",
            ]
            for peer, timing in peers.items()
        ],
    ]
    if peers:
        best = [max(said[peer][i]["images_per_s"] for peer in peers) for i in range(len(our_train))]
        best_val = [max(said[peer][i]["val_images_per_s"] for peer in peers) for i in range(len(our_train))]
        wall = [min(timing.seconds[i] for timing in peers.values()) for i in range(len(our_train))]
        least = min(timing.mib for timing in peers.values())
        headline("ResNet18, training, against the best peer", against(our_train, best), 2.3)
        headline("ResNet18, validation, against the best peer", against(inside["validation"], best_val), 3.3)
        headline("ResNet18, start to validated", against(validated, wall), 0.5, at_most=True)
        headline("ResNet18, peak memory", [ours.mib / least], 1, at_most=True)
        rows.append(
            [
                "against the best of them (goals 2.3 x, 3.3 x, 0.5 x, below 1)",
                ratio(our_train, best),
                ratio(inside["validation"], best_val),
                ratio(validated, wall),
                ratio(ours.seconds, wall),
                f"{ours.mib / least:.2f} x",
            ]
        )
    head = [
        f"{network} at {px} px, batch 64, {images:,} images, 1 epoch",
        "train images/s",
        "validation images/s",
    ]
    return {
        "train": table([*head, "start to validated", "and to leaderboard and report", "peak memory"], rows)
    }


def in_process(root: Path, name: str, rounds: int) -> dict[str, list[float]]:
    """Loop, bare step and validation rates of a spec's first cell, in one process."""
    (run_folder, *_) = sorted(path.parent for path in root.glob(f"experiments/{name}/*/provenance.json"))
    code = (
        "import json, sys; from pathlib import Path; from jobs.planning.plan import make_plan;"
        "from pipeline.spec.reading import read_spec;"
        "cell = make_plan(read_spec(Path(sys.argv[1]))).cells[0];"
        "spec = json.loads(cell.cell.spec.model_dump_json(by_alias=True));"
        "print(json.dumps([spec, str(cell.data.packed), str(cell.data.split)]))"
    )
    script = [sys.executable, "-c", code, str(root / "experiments" / f"{name}.yaml")]
    planned = json.loads(
        subprocess.run(script, cwd=root, env=environment(), capture_output=True, text=True, check=True).stdout
    )
    folder = root / f"in-process-{name}"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bench" / "bare.py")],
        cwd=root,
        env=environment(**ENVIRONMENT),
        text=True,
        input=json.dumps([*planned, str(folder), rounds]),
        capture_output=True,
    )
    if done.returncode:
        raise SystemExit(f"{run_folder}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def step(root: Path, scale: Scale) -> dict[str, str]:
    """The loop with its data path against the step alone; cnn3 against the seed-style script."""
    images, px = scale.of(1000, 100), scale.of(128, 32)
    data, rows = labelled_folder(root, images, scale), []
    for network, goal in (("resnet18", 0.97), ("cnn3", 0.90))[scale.of(0, 1) :]:
        text = (
            f"train: {{model: {{name: {network}}}, image_px: {px}, epochs: 1, batch_size: 64, augment: {AUGMENT}}}\n"
            "run: {parallel: 1}"
        )
        path = spec(root, f"step-{network}", text, data, px)
        timed([*JOBS, "grid", str(path)], root, 1)
        rates = in_process(root, f"step-{network}", rounds=scale.of(5, 1))
        headline(f"{network}, of its bare step", against(rates["loop"], rates["bare"]), goal)
        rows.append(
            [
                f"{network}, of the step alone (goal {goal})",
                spread(rates["loop"]),
                spread(rates["bare"]),
                ratio(rates["loop"], rates["bare"]),
            ]
        )
        if network == "cnn3" and SHARED:
            options = ("--n", str(images), "--size", str(px), "--bs", "64", "--model", network)
            theirs = [run("seed_style", data, Timing(), *options)["images_per_s"] for _ in rates["loop"]]
            headline("cnn3, training, against the seed-style script", against(rates["loop"], theirs), 4)
            rows.append(
                [
                    "cnn3, of the seed-style script (goal 4 x)",
                    spread(rates["loop"]),
                    spread(theirs),
                    ratio(rates["loop"], theirs),
                ]
            )
    return {"step": table([f"training at {px} px, batch 64", "images/s", "the other's", "ratio"], rows)}


def grid(root: Path, scale: Scale) -> dict[str, str]:
    """Seven optimizers together, alone, and as seven seed-style processes one after another."""
    images, rows = scale.of(2000, 100), []
    data = labelled_folder(root, images, scale)
    for network, px in (("resnet18", scale.of(64, 32)), ("cnn3", scale.of(128, 32))):
        packed_px = scale.of(128, 32)
        text = sweep(
            f"model: {{name: {network}}}, image_px: {px}, epochs: {scale.of(3, 1)}, augment: {AUGMENT}", scale
        )
        path = spec(root, f"grid-{network}", text, data, packed_px)
        ours, alone, theirs = Timing(), Timing(), Timing()
        once([*JOBS, "grid", str(path)], root, ours, lambda: forget(root))
        together = boards(root, f"grid-{network}")
        other = spec(
            root,
            f"alone-{network}",
            text.replace("grid: {", "grid: {share_process: false, "),
            data,
            packed_px,
        )
        once([*JOBS, "grid", str(other)], root, alone)
        same = "the same" if boards(root, f"alone-{network}") == together else "DIFFERENT"
        if SHARED:
            common = ("--n", str(images), "--size", str(px), "--bs", "64", "--model", network)
            for name in _MEASURED:
                epochs_of = ("--epochs", str(scale.of(3, 1)))
                run("seed_style", data, theirs, *common, "--optimizer", name, *epochs_of)
        total = scale.of(7, 2) / len(_MEASURED) * sum(theirs.seconds)
        times = f"{total / ours.seconds[0]:.1f} x" if total else ""
        if total:
            headline(f"7 optimizers, {network}, against 7 scripts", [total / ours.seconds[0]], 3.5)
        rows.append(
            [
                f"{network} at {px} px",
                f"{ours.median:.0f} s",
                f"{alone.median:.0f} s",
                f"{total:.0f} s",
                times,
                same,
            ]
        )
    head = [
        f"7 optimizers, {images:,} images, 3 epochs",
        "together",
        "one process a cell",
        "7 seed-style processes (2 measured)",
    ]
    return {"grid": table([*head, "ratio (goal 3.5 x)", "leaderboard of both"], rows)}


def sweep(train: str, scale: Scale) -> str:
    cells = []
    for name, optimizer in list(OPTIMIZERS.items())[: scale.of(7, 2)]:
        schedule = ", train.schedule: {name: cosine}" if name == "sgd-cosine" else ""
        cells.append(f"{{train.optimizer: {optimizer}{schedule}}}")
    return f"train: {{{train}, batch_size: 64}}\ngrid: {{cells: [{', '.join(cells)}]}}\n"


def boards(root: Path, name: str) -> list[str]:
    return sorted((root / "experiments" / name / "leaderboard.csv").read_text().splitlines())


def head(root: Path, scale: Scale) -> dict[str, str]:
    """Seven head-only cells from kept features against seven frozen seed-style runs, extrapolated from an epoch."""
    weights = SHARED / "weights" / "mobilenet_v2-imagenet.pth" if SHARED else None
    if weights is None:
        return {}
    images, px, count = scale.of(2000, 100), scale.of(224, 32), scale.of(15, 2)
    data = labelled_folder(root, images, scale)
    model = f"{{name: mobilenet_v2, weights: {weights}, trainable: head}}"
    text = sweep(
        f"model: {model}, image_px: {px}, epochs: {count}, augment: {{hflip: 0}}, cached_views: 1", scale
    )
    path, ours, theirs = spec(root, "head", text, data, scale.of(128, 32)), Timing(), []
    once([*JOBS, "grid", str(path)], root, ours, lambda: forget(root))
    for name in list(OPTIMIZERS)[: scale.of(7, 2)]:
        timing = Timing()
        options = (
            "--n",
            str(images),
            "--size",
            str(px),
            "--bs",
            "64",
            "--model",
            "mobilenet_v2",
            "--optimizer",
            name,
        )
        said = run("seed_style", data, timing, *options, "--frozen", "--weights", str(weights))
        epoch = 0.8 * images / said["images_per_s"] + 0.2 * images / said["val_images_per_s"]
        theirs.append(timing.seconds[0] + (count - 1) * epoch)
    headline("7 head-only cells, against 7 frozen scripts", [sum(theirs) / ours.median], 60)
    rows = [
        ["labelgrid, data packed and features computed on the way", f"{ours.median:.1f} s"],
        ["7 frozen seed-style runs, one after another (extrapolated)", f"{sum(theirs):.0f} s"],
        ["ratio (goal 60 x)", f"{sum(theirs) / ours.median:.0f} x"],
    ]
    return {
        "head": table(
            [f"7 head-only cells x {count} epochs, mobilenet_v2 at {px} px, {images:,} images", "time"], rows
        )
    }


def quality(root: Path, scale: Scale) -> dict[str, str]:
    """The fast path against plain fp32 over three seeds: loss and F1 must differ by no more than seeds do."""
    images, px = scale.of(2000, 100), scale.of(64, 32)
    data, rows = labelled_folder(root, images, scale), []
    for precision in ("fp32", "auto"):
        text = (
            f"train: {{model: {{name: resnet18}}, image_px: {px}, epochs: {scale.of(4, 1)}, batch_size: 64,"
            f" precision: {precision}, augment: {AUGMENT}}}\ngrid: {{seeds: [0, 1, 2]}}\nrun: {{parallel: 1}}"
        )
        timed(
            [*JOBS, "grid", str(spec(root, f"quality-{precision}", text, data, scale.of(128, 32)))], root, 1
        )
        last = max(row["epoch"] for row in epochs(root, f"quality-{precision}"))
        ends = [row for row in epochs(root, f"quality-{precision}") if row["epoch"] == last]
        cells = [
            f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}"
            for tag in ("train/loss", "validation/loss", "validation/f1_micro", "validation/map_macro")
            for values in [[row[tag] for row in ends]]
        ]
        rows.append([precision, *cells])
    return {
        "quality": table(
            [
                f"resnet18 at {px} px, 3 seeds (mean +- sd)",
                *("training loss", "validation loss", "f1_micro", "map_macro"),
            ],
            rows,
        )
    }
