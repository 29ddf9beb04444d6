"""`make bench`: measures CPUs, and writes the tables of docs/performance.md between their markers.

Figures are medians with their range, beside a peer measured in the same run: machines and their moods
differ, ratios last. With LABELGRID_SHARED the real photographs and the peers are used. `--only train grid`
measures some sections; `--smoke` all of them at toy size, and writes nothing. What it starts sees no GPU:
`make bench-gpu` (tests/bench/gpu.py) measures one.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import tempfile
from pathlib import Path

import sections
from headlines import keep
from measure import ROOT, Scale
from on_cpus import cpus
from on_growth import growth
from on_labels import labels
from on_report import report
from on_scaling import scaling
from on_slurm import slurm

PAGE = ROOT / "docs" / "performance.md"
SECTIONS = {
    "wrangle": sections.wrangle,
    "labels": labels,
    "start": sections.start,
    "step": sections.step,
    "train": sections.train,
    "cpus": cpus,
    "grid": sections.grid,
    "scaling": scaling,
    "head": sections.head,
    "quality": sections.quality,
    "slurm": slurm,
    "report": report,
    "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    scale = Scale(options.smoke)
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            tables = SECTIONS[name](Path(folder), scale)
        for marker, text in tables.items():
            if not scale.smoke:
                write(marker, f"{hardware()}\n\n{text}")
            print(text, end="\n\n", flush=True)
        if not scale.smoke:
            write("goals", keep())


def hardware() -> str:
    """One line: when and on which CPU. A GPU of this machine is not named: what is measured gets none."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    model = next((facts[key] for key in facts if key.startswith("model name")), "unknown CPU")
    flags = " ".join(facts.get(next((key for key in facts if key.startswith("flags")), ""), "").split())
    bf16 = "with bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "without bf16"
    cores = len(os.sched_getaffinity(0))
    return f"{datetime.date.today()}: the CPU alone, {cores} cores of {model} ({bf16}), torch {torch.__version__}."


def write(marker: str, text: str) -> None:
    page = PAGE.read_text()
    pattern = rf"(<!-- bench:{marker} -->\n).*?(<!-- end -->)"
    page, count = re.subn(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S)
    if count != 1:
        raise SystemExit(f"{PAGE}: no place marked `<!-- bench:{marker} -->`")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
