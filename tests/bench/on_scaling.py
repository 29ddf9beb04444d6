"""One cell by several processes on the CPU, a core each: images/s, and the share of the time that they exchange."""

from __future__ import annotations

from pathlib import Path

from measure import AUGMENT, JOBS, Scale, Timing, epochs, labelled_folder, once, spec, spread, table

PROCESSES = (1, 2)


def scaling(root: Path, scale: Scale) -> dict[str, str]:
    """A row per network and number of processes."""
    images, px = scale.of(800, 100), scale.of(128, 32)
    data, rows = labelled_folder(root, images, scale), []
    for model in ("cnn3",) if scale.smoke else ("cnn3", "resnet18"):
        rates = {}
        for processes in PROCESSES:
            name = f"{model}-{processes}"
            text = (
                f"train: {{model: {{name: {model}}}, image_px: {px}, epochs: {scale.of(3, 1)}, batch_size: 64, "
                f"precision: fp32, augment: {AUGMENT}}}\n"
                f"run: {{parallel: 1, threads: 1, device: cpu, gpus_per_cell: {processes}}}"
            )
            once([*JOBS, "grid", str(spec(root, name, text, data, px))], root, Timing())
            found = epochs(root, name)[-2:]  # the first one warms up
            rates[processes] = [row["train/images_per_s"] for row in found]
            shares = [100 * row.get("train/exchange_share", 0.0) for row in found]
            times = max(rates[processes]) / max(rates[1])
            rows.append(
                [model, str(processes), spread(rates[processes]), f"{times:.2f} x", spread(shares, " %")]
            )
    head = [f"{px} px, batch 64, fp32", "processes", "train images/s", "of one process", "exchange"]
    return {"scaling": table(head, rows)}
