"""Training in float32 with fewer of a CPU's instructions: what older machines do, without having them."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from headlines import against, headline
from measure import (
    AUGMENT,
    JOBS,
    SHARED,
    Scale,
    Timing,
    epochs,
    forget,
    labelled_folder,
    once,
    ratio,
    spec,
    spread,
    table,
)
from peers import run
from sections import in_process

# oneDNN's and torch's own limits; a CPU must have the instruction
KINDS = {
    "AVX-512 without bf16": ("avx512f", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}),
    "AVX2": ("avx2", {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}),
}


def cpus(root: Path, scale: Scale) -> dict[str, str]:
    """A row per kind of CPU: ours against its bare step in fp32, and against the seed-style script."""
    images, px = scale.of(400, 100), scale.of(128, 32)
    data, rows = labelled_folder(root, images, scale), []
    text = (
        f"train: {{model: {{name: resnet18}}, image_px: {px}, epochs: 1, batch_size: 64, precision: fp32, "
        f"augment: {AUGMENT}}}\nrun: {{parallel: 1}}"
    )
    options = ("--n", str(images), "--size", str(px), "--bs", "64", "--model", "resnet18")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    for kind, (needed, limits) in KINDS.items():
        if needed not in flags:
            continue
        name = limits["ONEDNN_MAX_CPU_ISA"].lower()
        path = spec(root, name, text, data, px)
        with mock.patch.dict(os.environ, limits):
            ours, theirs, rates, said = Timing(), Timing(), [], []
            for _ in range(scale.of(2, 1)):
                once([*JOBS, "grid", str(path)], root, ours, lambda: forget(root))
                rates.append(epochs(root, name)[0]["train/images_per_s"])
                if SHARED:
                    said.append(run("seed_style", data, theirs, *options))
            inside = in_process(root, name, rounds=scale.of(2, 1))
        headline(f"ResNet18 in fp32, {kind}, of its bare step", against(inside["loop"], inside["bare"]), 0.97)
        row = [kind, spread(rates), ratio(inside["loop"], inside["bare"]), spread(inside["validation"])]
        if said:
            other = [one["images_per_s"] for one in said], [one["val_images_per_s"] for one in said]
            headline(f"ResNet18 in fp32, {kind}, peak memory", [ours.mib / theirs.mib], 1, at_most=True)
            memory = f"{ours.mib:.0f} / {theirs.mib:.0f} MiB"
            row += [spread(other[0]), spread(other[1]), ratio(rates, other[0]), memory]
        rows.append(row)
    head = [f"resnet18 at {px} px in fp32, batch 64, {images:,} images", "train images/s"]
    head += ["of the bare step (goal 0.97)", "validation images/s"]
    if SHARED:
        head += ["seed-style: train", "validation", "ratio, training", "peak memory, ours / theirs"]
    return {"cpus": table(head, rows)}
