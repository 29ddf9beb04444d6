"""A large sweep in the real format, made of one small finished experiment."""

import csv
import json
import shutil

import numpy as np
import yaml

from pipeline.evaluation.selection import Selection
from pipeline.metrics.decision_rule import Validation
from pipeline.metrics.multilabel import per_label
from pipeline.storage.files import read_json, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.tables import write_table


def make_sweep(finished, folder, cells, epochs=30, labels=None):
    """`cells` cells of `epochs` epochs with an axis of rates, optimizers and seeds, ranked; of so many labels."""
    source = ExperimentDir(finished)
    selection = Selection.read(source)
    best = finished / selection.cell
    spec = yaml.safe_load((best / "spec.yaml").read_text())
    epoch = next(
        row
        for row in map(json.loads, (best / "metrics.jsonl").read_text().splitlines())
        if "validation/loss" in row
    )
    with source.leaderboard.open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["cell"] == best.name)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(cells):
        name = f"cell-with-a-name-of-usual-length-lr{i % 50}-seed{i // 50}-{i:08x}"
        run = folder / name
        run.mkdir(parents=True)
        settings = {**spec["train"]["optimizer"], "lr": 1e-4 * (1 + i % 50)}
        train = {**spec["train"], "optimizer": settings, "seed": i // 50, "epochs": epochs}
        (run / "spec.yaml").write_text(yaml.safe_dump(spec | {"train": train}))
        top = 0.4 + 0.4 * rng.random()
        curve = [
            {tag: value * (1 + 0.1 * rng.random()) if "/" in tag else value for tag, value in epoch.items()}
            | {"epoch": n, "step": 10 * n, "validation/f1_micro": top * (1 - 0.8**n)}
            for n in range(1, epochs + 1)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
        for file in ("manifest.json", "provenance.json"):
            shutil.copy(best / file, run / file)
        values = {"f1_micro": top, "f1_micro_lo": top - 0.03, "f1_micro_hi": top + 0.03}
        recipe = {"recipe": f"lr{1e-4 * (1 + i % 50):.4g}", "set/train.optimizer.lr": f"{settings['lr']:.4g}"}
        rows.append(row | {"cell": name} | recipe | values)
    rows.sort(key=lambda row: -row["f1_micro"])
    for file in ("report.json", "scores_val.npz"):
        shutil.copy(best / file, folder / rows[0]["cell"] / file)
    experiment = ExperimentDir(folder)
    write_table(experiment.leaderboard, tuple(rows[0]), rows)
    name = rows[0]["cell"]
    selection = selection.model_copy(update={"cell": name, "cells": (name,)})
    if labels is not None:
        selection = selection.model_copy(update={"split": folder / "split.json"})
        _with_labels(RunDir(folder / name), labels)
        counts = {f"label {k}": 1 + k % 50 for k in range(labels)}
        part = {"images": 48, "negative": 0, "labels": counts}
        selection.split.write_text(json.dumps({"counts": {"train": part, "validation": part}}))
    selection.write(experiment)
    return experiment


def _with_labels(run, labels):
    """Random scores of so many labels in place of a cell's own, and its report.json."""
    ids = Validation.read(run).ids
    rng = np.random.default_rng(0)
    names = [f"label {k}" for k in range(labels)]
    targets_NK = (rng.random((len(ids), labels)) < 0.02).astype(np.uint8)
    scores_NK = (0.5 * targets_NK + 0.52 * rng.random(targets_NK.shape)).clip(0, 1).astype(np.float32)
    np.savez(run.scores_val, ids=np.array(ids), labels=np.array(names), scores=scores_NK, targets=targets_NK)
    run.write_manifest(run.read_manifest()["identity"], "done")
    decisions_NK = (scores_NK >= 0.5).astype(np.uint8)
    report = read_json(run.report)
    report["per_label"] = per_label(names, scores_NK, decisions_NK, targets_NK, np.full(labels, 0.5))
    write_json(run.report, report)
