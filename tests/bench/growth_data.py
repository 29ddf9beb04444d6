"""Synthetic sets, cells and test scores of any size in the real formats; pixels are holes of sparse files."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from pipeline.data import layout
from pipeline.data.pixel_files import PixelFiles
from pipeline.evaluation.submission import made_of
from pipeline.storage.files import sha256_file, write_csv, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir

IDENTITY = "a" * 12
PX = 8
_ROWS = 100_000  # at a time


def label_names(count: int) -> list[str]:
    return [f"label {k}" for k in range(count)]


def drawn_labels(images: int, labels: int, seed: int = 0) -> np.ndarray:
    """(N, K) of 0 and 1: two labels an image on average, the first ones more often; no label is empty."""
    share_K = 2 / (1 + np.arange(labels)) / max(1.0, np.log(labels + 1))
    rng, parts = np.random.default_rng(seed), []
    for start in range(0, images, _ROWS):
        drawn = rng.random((min(_ROWS, images - start), labels), np.float32)
        parts.append((drawn < np.minimum(share_K, 0.9)).astype(np.uint8))
    labels_NK = np.concatenate(parts) if parts else np.zeros((0, labels), np.uint8)
    labels_NK[np.arange(labels) % max(images, 1), np.arange(labels)] = 1
    return labels_NK


def drawn_scores(labels_NK: np.ndarray, noise: float = 0.7, seed: int = 0) -> np.ndarray:
    """Scores that know something of the labels."""
    drawn_NK = np.random.default_rng(seed).random(labels_NK.shape, np.float32)
    return np.clip(labels_NK * np.float32(0.4) + np.float32(noise) * drawn_NK, 0, 1)


def write_set(folder: Path, images: int, labels: int) -> Path:
    """A packed set as this version of the code writes it, also of versions with an index of text alone."""
    folder.mkdir(parents=True)
    pixels = PixelFiles(folder, PX, writable=True)
    for name in pixels.names(images):
        (folder / name).touch()
    pixels.finish(images)
    np.save(
        folder / layout.LABELS, drawn_labels(images, labels) if labels else np.zeros((images, 0), np.uint8)
    )
    rows = (
        (f"{i:08}", f"im{i:08}.jpg", f"images/im{i:08}.jpg", "train", hashlib.sha1(b"%d" % i).hexdigest())
        for i in range(images)
    )
    if hasattr(layout, "INDEX_CSV"):
        from pipeline.data.index import Index

        with (folder / layout.INDEX).open("wb") as file:
            Index.of(rows).write(file)
    else:
        columns = ["row", "id", "name", "path", "part", "pixels"]
        write_csv(folder / layout.INDEX, columns, ([i, *row] for i, row in enumerate(rows)))
    write_json(folder / layout.REPORT, {"left_out": []})
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in sorted(folder.iterdir())}
    facts = {
        "version": layout.PACK_VERSION,
        "digest": f"{images} {labels}",
        "source": "none",
        "images": images,
    }
    facts |= {"size_px": PX, "resize": "squash", "range": None, "labels": label_names(labels), "files": files}
    write_json(folder / layout.DATASET, facts)
    return folder


def write_cell(
    experiment: ExperimentDir, name: str, ids: list[str], targets_NK: np.ndarray, seed: int
) -> RunDir:
    """A finished cell with scores of validation images."""
    run = RunDir(experiment.path / f"{name}-{IDENTITY[:8]}")
    run.path.mkdir(parents=True)
    labels = label_names(targets_NK.shape[1])
    arrays = {"ids": np.array(ids), "labels": np.array(labels), "targets": targets_NK}
    np.savez(run.scores_val, scores=drawn_scores(targets_NK, 0.5 + 0.1 * (seed % 5), seed), **arrays)
    run.spec.write_text(json.dumps({"name": "x"}))
    write_json(run.provenance, {})
    run.metrics.write_text("")
    run.checkpoint_best.write_bytes(name.encode())
    run.write_manifest(IDENTITY, "done")
    return run


def write_test_scores(run: RunDir, packed: Path, images: int, labels: int) -> None:
    """`scores_test.npz`, written in parts."""
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(run.scores_test, "w") as archive:
        small = {
            "ids": np.array([f"{i:08}" for i in range(images)]),
            "names": np.array([f"im{i:08}.jpg" for i in range(images)]),
            "labels": np.array(label_names(labels)),
            "made_of": np.array(made_of(run, packed, None)),
        }
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        with archive.open("scores.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (images, labels)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, images, 10_000):
                file.write(rng.random((min(10_000, images - start), labels), np.float32).tobytes())


def write_pictures(path: Path, images: int, labels: int, *, archive: bool) -> Path:
    """Empty files named like pictures and a table of their labels, in a zip or a folder."""
    table = ["image,labels\n"]
    names = label_names(labels)
    names = [name.replace(" ", "-") for name in names]
    table += [f"im{i:07}.jpg,{names[i % labels]} {names[i // 3 % labels]}\n" for i in range(images)]
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("labels.csv", "".join(table))
            for i in range(images):
                file.writestr(f"images/im{i:07}.jpg", b"")
        return path
    (path / "images").mkdir(parents=True)
    (path / "labels.csv").write_text("".join(table))
    for i in range(images):
        (path / "images" / f"im{i:07}.jpg").touch()
    return path
