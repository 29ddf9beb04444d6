"""`make bench`: measures, and writes the tables of docs/performance.md between their markers.

Every figure is a median with its range over repeats, beside a peer measured in the same run: machines
and their moods differ, ratios last. With LABELGRID_SHARED the real photographs are used.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.report import write_report  # noqa: E402
from tests.browser import Browser  # noqa: E402
from tests.sweep import make_sweep  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
PEER_DECODE = """
import io, sys, zipfile
import numpy as np
from PIL import Image
archive = zipfile.ZipFile(sys.argv[1])
names = [name for name in archive.namelist() if name.endswith(".jpg")]
images = (Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((128, 128)) for name in names)
np.save(sys.argv[2], np.stack([np.asarray(image) for image in images]))
"""


def timed(command: list[str], repeats: int, cwd: Path, before=lambda: None) -> tuple[str, float, float]:
    """("median s [low-high]", median s, peak MiB of all its processes together) of a whole process."""
    seconds, peaks = [], []
    for _ in range(repeats):
        before()
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, env=environment())
        peaks.append(watch_memory(process))
        if process.wait():
            raise SystemExit(f"{' '.join(command)}: failed with {process.returncode}")
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    return f"{median:.2f} s [{min(seconds):.2f}-{max(seconds):.2f}]", median, max(peaks)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def watch_memory(process: subprocess.Popen) -> float:
    """MiB: the highest sum of proportional set sizes of a process and its descendants, sampled."""
    peak = [0.0]

    def sample() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], sum(pss_kib(pid) for pid in family(process.pid)) / 1024)
            time.sleep(0.05)

    thread = threading.Thread(target=sample)
    thread.start()
    thread.join()
    return peak[0]


def family(pid: int) -> list[int]:
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


def pss_kib(pid: int) -> int:
    try:
        return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
    except (OSError, TypeError):
        return 0


def data_source(folder: Path) -> tuple[Path, int]:
    shared = os.environ.get("LABELGRID_SHARED")
    if shared:
        return Path(shared) / "data" / "mirflickr-10k.zip", 10_000
    from pipeline.data.drawn import draw

    return draw(folder, images=2000, test_images=10, size_px=128).train, 2000


def write_spec(root: Path, source: Path, epochs: int) -> Path:
    (root / "experiments").mkdir(exist_ok=True)
    spec = root / "experiments" / "bench.yaml"
    spec.write_text(
        f"data: {{source: {source}, images: 'images/im{{id}}.jpg', size_px: 128, unlabelled: {{train: drop}}}}\n"
        f"train: {{epochs: {epochs}, batch_size: 64}}\nrun: {{parallel: 1}}\n"
    )
    return spec


def bench(root: Path) -> dict[str, str]:
    """The tables by marker."""
    source, images = data_source(root)
    spec = write_spec(root, source, 1)
    jobs = [sys.executable, "-m", "jobs"]

    def forget() -> None:
        shutil.rmtree(root / "data", ignore_errors=True)

    wrangle_text, wrangle_s, wrangle_mib = timed([*jobs, "wrangle", str(spec)], 3, root, forget)
    peer = [sys.executable, "-c", PEER_DECODE, str(source), str(root / "peer.npy")]
    peer_text, peer_s, peer_mib = timed(peer, 3, root)
    train_text, _, train_mib = timed([*jobs, "grid", str(spec)], 1, root)
    rows = [
        json.loads(line) for path in root.glob("experiments/bench/*/metrics.jsonl") for line in path.open()
    ]
    rate = next(row["train/images_per_s"] for row in rows if "train/images_per_s" in row)
    again_text, again_s, _ = timed([*jobs, "grid", str(spec)], 5, root)
    mistake = (
        f"import subprocess, sys; sys.exit(subprocess.call({[*jobs, 'schema']!r}, stdout=subprocess.DEVNULL))"
    )
    schema_text, _, _ = timed([sys.executable, "-c", mistake], 5, root)
    torch_text, torch_s, _ = timed([sys.executable, "-c", "import torch"], 3, root)
    wrangle_table = f"""| {images:,} images to 128 px | time | peak memory, all processes |
|---|---|---|
| `make wrangle` | {wrangle_text} | {wrangle_mib:.0f} MiB |
| a loop over PIL into one array, one process | {peer_text} | {peer_mib:.0f} MiB |
| ratio | {peer_s / wrangle_s:.1f} times faster | {wrangle_mib / peer_mib:.2f} of the memory |"""
    start_table = f"""| command | time |
|---|---|
| `make grid` when everything is whole (`python -m jobs grid`) | {again_text} |
| `python -m jobs schema` (spec alone) | {schema_text} |
| `python -c "import torch"` | {torch_text} |
| a whole grid is recognised in | {again_s / torch_s:.2f} of the time to import torch |"""
    train_table = f"""| cnn3 at 128 px, batch 64, one epoch and its scoring | |
|---|---|
| time of the whole `make grid`, data packed before | {train_text} |
| training alone | {rate:.0f} images/s |
| peak memory, all processes | {train_mib:.0f} MiB |"""
    return {"wrangle": wrangle_table, "start": start_table, "train": train_table}


def bench_slurm(root: Path) -> dict[str, str]:
    """Planning, submitting and looking at 1,000 cells on a real cluster, and what a chain of stages adds."""
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
        text, median, _ = timed(command, repeats, root)
        return text, median

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
    rows = subprocess.run(
        ["sacct", "-X", "-n", "-P", "-o", "Start,End,JobName"],
        capture_output=True,
        text=True,
        env=environment(),
    ).stdout.splitlines()
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


def bench_report(root: Path) -> dict[str, str]:
    """How large the report of a sweep of 1,000 cells is, and how soon a Chromium has opened it."""
    source = data_source(root)[0]
    spec = write_spec(root, source, 1)
    subprocess.run([sys.executable, "-m", "jobs", "grid", str(spec)], cwd=root, env=environment(), check=True)
    experiment = make_sweep(root / "experiments" / spec.stem, root / "sweep", 1000)
    started = time.perf_counter()
    write_report(experiment)
    written = time.perf_counter() - started
    browser = Browser(root / "chromium")
    browser.page("about:blank").close()
    opened = []
    for _ in range(3):
        started = time.perf_counter()
        page = browser.page(experiment.report.as_uri())
        page.value("document.body.offsetHeight")  # laid out
        opened.append(time.perf_counter() - started)
        page.close()
    browser.close()
    size, median = experiment.report.stat().st_size / 1e6, statistics.median(opened)
    text = f"1,000 cells of 30 epochs: {size:.1f} MB, written in {written:.1f} s, opened in {median:.1f} s"
    return {"report": text}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = bench(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        tables |= bench_slurm(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        tables |= bench_report(Path(folder))
    text = PAGE.read_text()
    for marker, table in tables.items():
        pattern = rf"(<!-- bench:{marker} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"{PAGE}: no place marked `<!-- bench:{marker} -->`")
        print(table, end="\n\n")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
