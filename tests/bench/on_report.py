"""How large the report of a sweep of 1,000 cells is, and how soon a Chromium has opened it."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from measure import JOBS, ROOT, Scale, source, spec, timed


def report(root: Path, scale: Scale) -> dict[str, str]:
    sys.path.insert(0, str(ROOT))
    from pipeline.report import write_report
    from tests.browser import Browser
    from tests.sweep import make_sweep

    path = spec(root, "bench", "train: {epochs: 1}", source(root, scale), scale.of(128, 32))
    timed([*JOBS, "grid", str(path)], root, 1)
    cells = scale.of(1000, 10)
    experiment = make_sweep(root / "experiments" / path.stem, root / "sweep", cells)
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
    text = (
        f"{cells:,} cells of 30 epochs: {size:.1f} MB, written in {written:.1f} s, opened in {median:.1f} s"
    )
    return {"report": text}
