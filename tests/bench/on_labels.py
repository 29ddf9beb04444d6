"""How long a label table of a million rows is read, until each image has its labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from headlines import headline
from measure import ROOT, Scale, environment, spread, table

LABELS = (
    "cat",
    "dog",
    "bird",
    "car",
    "boat",
    "tree",
    "hill",
    "lake",
    "road",
    "sky",
    "sun",
    "moon",
    "man",
    "cow",
)


def labels(root: Path, scale: Scale) -> dict[str, str]:
    rows = scale.of(1_000_000, 1_000)
    said = {}
    for form in ("onehot_csv", "list_csv"):
        _write(root / f"{form}.csv", form, rows)
        said[form] = [_measured(root, form) for _ in range(scale.of(3, 1))]
        seconds = [one["seconds"] for one in said[form]]
        headline(f"{form} of 1 M rows, processor time", seconds, 10, unit="s", at_most=True)
    body = [
        [
            f"`{form}`",
            spread([one["seconds"] for one in runs], " s"),
            f"{max(one['mib'] for one in runs):.0f} MiB",
        ]
        for form, runs in said.items()
    ]
    head = [f"{rows:,} rows of {len(LABELS)} labels, each image found", "processor time (goal 10 s)"]
    return {"labels": table([*head, "peak memory (goal 1,024 MiB)"], body)}


def _write(path: Path, form: str, rows: int) -> None:
    """Two labels a row, which one differs from row to row."""
    count = len(LABELS)
    with path.open("w") as file:
        file.write("image," + (",".join(LABELS) if form == "onehot_csv" else "labels") + "\n")
        for row in range(rows):
            pair = (row % count, row // count % count)
            cells = (
                ",".join("1" if k in pair else "0" for k in range(count))
                if form == "onehot_csv"
                else " ".join(dict.fromkeys(LABELS[k] for k in pair))
            )
            file.write(f"images/{row:07}.jpg,{cells}\n")


def _measured(root: Path, form: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), str(root), form]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def _read(root: Path, form: str) -> None:
    import resource
    import time

    sys.path.insert(0, str(ROOT))
    from pydantic import TypeAdapter

    from pipeline.data.images import Images
    from pipeline.data.labels import read_labels
    from pipeline.data.references import ImageRef
    from pipeline.data.resolving import resolve
    from pipeline.data.sources import open_source
    from pipeline.spec.labels import LabelsSpec

    spec = TypeAdapter(LabelsSpec).validate_python({"format": form, "file": f"{form}.csv"})
    with (root / f"{form}.csv").open() as file:
        rows = sum(1 for _ in file) - 1
    names = (f"{row:07}" for row in range(rows))
    chosen = [ImageRef(f"images/{name}.jpg", name, name) for name in names]
    images = Images(chosen=chosen, matched=chosen, unlisted=[], unmatched=[])
    started = time.process_time()
    source = open_source(root)
    found = resolve(read_labels(source, spec, chosen), images, source, "data")
    seconds = time.process_time() - started
    assert found.mentioned_N.all()
    print(json.dumps({"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    _read(Path(sys.argv[1]), sys.argv[2])
