"""`demo`: draw a data set and take it through the whole pipeline."""

from __future__ import annotations

import time
from pathlib import Path

SPEC = Path(__file__).resolve().parents[2] / "experiments" / "demo.yaml"


def demo() -> int:
    """Draw, wrangle, train, evaluate, submit; say what to look at and what to type next."""
    started = time.monotonic()
    # said before the imports, which take a second
    print("demo: pictures are drawn and packed, four cells are trained and ranked", flush=True)
    from jobs.clusters.profile import load_profile
    from jobs.commands.request import Request
    from jobs.commands.run import submission
    from jobs.local.progress import shown
    from jobs.planning.plan import data_root
    from pipeline.data.drawn import draw
    from pipeline.spec.reading import read_spec
    from pipeline.storage.files import display_path
    from pipeline.storage.typed import typed

    loaded = read_spec(SPEC)
    with shown():
        drawn = draw(data_root(loaded.root) / "raw")
    print(f"drawn: {display_path(drawn.train)} and {display_path(drawn.test)}", flush=True)
    status = submission(Request(loaded, "local", load_profile("local")))
    if status:
        return status  # stopped or failed, which has been said: there may be nothing to look at
    results = loaded.root / "experiments" / loaded.spec.name
    spec = display_path(SPEC)
    following = {
        typed("grid", spec, settings=["train.epochs=20"]): "cells of 20 epochs, ranked beside those of 8",
        typed("select", spec, run="CELL"): "another cell for the submission",
        "tensorboard --logdir experiments/": "the curves",
        typed("data", ""): "MIRFLICKR-25000, for experiments/optimizers.yaml",
    }
    width = max(map(len, following))
    typed_lines = "\n".join(f"  {command:{width}}  {what}" for command, what in following.items())
    print(f"""
{time.monotonic() - started:.0f} s. Look at:
  {display_path(results)}/report.html
  {display_path(results)}/submission.csv
Type next:
{typed_lines}""")
    return status
