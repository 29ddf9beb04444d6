"""The share of an epoch in which a GPU computes or copies, by torch's profiler; its traces can be looked at."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_set import Bench, Result, device, forget_everything, make_learner, train_whole, write_spec
from gpu_speed import Rates, clocked
from measure import table
from torch.profiler import ProfilerActivity, profile

KINDS = {  # of kernels, by their names; the first that fits
    "convolutions and matrix products": r"conv|wgrad|dgrad|fprop|xmma|cutlass|gemm|winograd|nvjet|sm\d\d_",
    "batch norm": r"batch_?norm|bn_",
    "optimizer": r"adam|multi_tensor|sgd",
    "pooling": r"pool",
}


def busy(bench: Bench) -> Result:
    """The share of an epoch in which the GPU computes or copies, and what it does then."""
    activity = ProfilerActivity.CUDA if device() == "cuda" else ProfilerActivity.CPU
    activities = [activity], list({ProfilerActivity.CPU, activity})
    bench.profile.mkdir(parents=True, exist_ok=True)
    traces = bench.profile / "gpu-kernels.json.gz", bench.profile / "gpu-steps.json.gz"
    profiled = _profiled(bench, activities[0], traces[0], small=False)
    _profiled(bench, activities[1], traces[1], small=True)  # the host's side too, of a few steps
    if device() == "cpu":
        return Result(tables={"Busy share": "Left out: no GPU. The traces were written."})
    events = [
        event for event in _events(traces[0]) if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    share = busy_seconds(events) / profiled.loop_s[1]
    by_kind: Counter[str] = Counter()
    for event in events:
        by_kind[_kind(event)] += event["dur"]
    total = sum(by_kind.values())
    rows = [
        [f"busy, of an epoch of {profiled.loop_s[1]:.2f} s under the profiler", f"{share:.1%}"],
        ["the same epoch without the profiler", f"{profiled.loop_s[0]:.2f} s"],
        *[[f"of the GPU's time: {kind}", f"{time / total:.1%}"] for kind, time in by_kind.most_common()],
    ]
    text = table([f"{bench.network}, batch {bench.batch_sizes[0]}, flips", ""], rows)
    return Result(tables={"Busy share of the GPU": text}, figures={"busy": [share]})


def busy_seconds(events: list[dict[str, Any]]) -> float:
    """In which at least one of them runs; a trace counts microseconds."""
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events)
    found, until = 0.0, float("-inf")
    for start, end in spans:
        found += max(0.0, end - max(start, until))
        until = max(until, end)
    return found / 1e6


def _profiled(bench: Bench, activities: list[Any], trace: Path, *, small: bool) -> Rates:
    """Three epochs: the first warms up, the third is profiled."""
    forget_everything()
    settings = {"epochs": 3, "batch_size": bench.batch_sizes[0]}
    one = make_learner(write_spec(bench, f"profile-{small}", settings, small=small))
    rates, running = Rates(one.stream.images), profile(activities=activities)
    state = {"on": False}

    def between(epoch: int) -> None:
        if epoch == 2:
            state["on"] = True
            running.start()

    def after() -> None:
        if state["on"]:
            state["on"] = False
            running.stop()

    with clocked(one, rates, between, after):
        train_whole([one])
    running.export_chrome_trace(str(trace))
    return rates


def _events(trace: Path) -> list[dict[str, Any]]:
    with gzip.open(trace, "rt") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return [event for event in events if "dur" in event]


def _kind(event: dict[str, Any]) -> str:
    if event["cat"] != "kernel":
        return "copies"
    name = event["name"].lower()
    return next(
        (kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "elementwise and the rest"
    )
