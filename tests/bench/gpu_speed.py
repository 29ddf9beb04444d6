"""How fast a GPU is kept busy: bare step and loop in turn, scoring, augmentation, features, memory, profile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from gpu_set import (
    Bench,
    Result,
    device,
    forget_everything,
    make_learner,
    now,
    train_whole,
    write_spec,
)
from measure import ratio, spread, table

from pipeline.data import pixel_cache
from pipeline.models.build import build_model
from pipeline.models.features import FrozenNetwork
from pipeline.models.scoring import compute_scores
from pipeline.spec import ModelSpec
from pipeline.storage.jsonl import read_jsonl
from pipeline.training import feeds, loop
from pipeline.training.feeds import PixelFeed, build_feed

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "flips": {"hflip": 0.5},
    "crop": {"hflip": 0.5, "crop": [0.35, 1]},
    "crop, rotation": {"hflip": 0.5, "crop": [0.35, 1], "rotate_deg": 25},
    "flips, one operation on colour": {"hflip": 0.5, "trivial_augment": True},
}


@dataclass
class Rates:
    """Of each epoch after the first, which warms up: seconds by the clock that waits for the device."""

    images: int
    loop_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    validation_s: list[float] = field(default_factory=list)
    said: list[float] = field(default_factory=list)  # images/s, by metrics.jsonl
    peak_gib: float = 0.0

    @property
    def loop(self) -> list[float]:
        return [self.images / seconds for seconds in self.loop_s]

    @property
    def bare(self) -> list[float]:
        return [self.images / seconds for seconds in self.bare_s]


@contextlib.contextmanager
def clocked(
    one: Any, rates: Rates, between: Callable[[int], None], after: Callable[[], None]
) -> Iterator[None]:
    """`train` of one learner, the device waited for where an epoch's steps begin and end, and its validation.

    `between` is called before each epoch with its number, `after` behind its last step.
    """
    begin, validate, began = one.training_mode, loop._validate, [0.0]

    def begins() -> None:
        between(one.epoch)
        begin()
        began[0] = now()

    def validates(learners: Any, feed: Any, *, final: bool = False) -> Any:
        ended = now()
        counts = not final and one.epoch > 0
        after()
        if counts:
            rates.loop_s.append(ended - began[0])
        started = now()
        found = validate(learners, feed, final=final)
        if counts:
            rates.validation_s.append(now() - started)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "training_mode", begins)
        patch.setattr(loop, "_validate", validates)
        yield


def bare_seconds(one: Any, inputs: Any, targets: Any) -> float:
    """Forward, backward and update for an epoch's batches, each as large as the loop's, all there already."""
    sizes = [span.stop - span.start for span in one.stream.spans]
    one.training_mode()

    def step(size: int) -> None:
        with one.execution.autocast():
            logits = one.trained(inputs[:size])
        one.scaler.scale(one.loss(logits.float(), targets[:size])).backward()
        one.scaler.step(one.optimizer)
        one.scaler.update()
        one.optimizer.zero_grad(set_to_none=True)

    for size in {*sizes}:  # what is sought once for each shape
        step(size)
    started = now()
    for size in sizes:
        step(size)
    return now() - started


def measure_loop(
    bench: Bench, name: str, *overrides: str, with_bare: bool = False, small: bool = False, **train: Any
) -> Rates:
    """A cell's epochs; `with_bare` the bare step of an equal learner in turn with them."""
    forget_everything()
    px = bench.larger_px if "crop" in train.get("augment", {}) else bench.px
    path = write_spec(bench, name, {"epochs": 3, **train}, small=small, size_px=px)
    rates = Rates(images=0)
    other = batch = None
    if with_bare:
        other = make_learner(path, *overrides)
        first = build_feed(other).batches(0, 0)
        batch = [tensor.clone() for tensor in next(iter(first))]
        first.close()
    one = make_learner(path, *overrides)
    rates.images = one.stream.images

    def between(epoch: int) -> None:
        if other is not None:
            seconds = bare_seconds(other, *batch)
            if epoch:
                rates.bare_s.append(seconds)

    with clocked(one, rates, between, lambda: None):
        train_whole([one])
    rows = [row for row in read_jsonl(one.run.metrics) if "validation/loss" in row]
    rates.said = [row["train/images_per_s"] for row in rows[1:]]
    if torch.cuda.is_available():
        rates.peak_gib = torch.cuda.max_memory_allocated() / 2**30
    if other is not None:
        other.tracker.close()
    return rates


def speed(bench: Bench) -> Result:
    """Bare step, loop and validation at both batch sizes; then what each variant of the loop makes of it."""
    result, rows = Result(), []
    epochs, validated = bench.scale.of(5, 3), bench.images()[1]
    for size in bench.batch_sizes:
        rates = measure_loop(bench, f"loop-{size}", epochs=epochs, with_bare=True, batch_size=size)
        scored = [validated / seconds for seconds in rates.validation_s]
        result.figures |= {f"loop {size}": rates.loop, f"validation {size}": scored}
        result.figures[f"ratio {size}"] = [
            b / a for a, b in zip(rates.loop_s, rates.bare_s, strict=True)
        ]  # fmt: skip
        cells = (spread(rates.loop), spread(rates.bare), ratio(rates.loop, rates.bare), spread(rates.said))
        rows.append([f"{size}", *cells, spread(scored)])
    head = [
        "batch size",
        "loop, images/s",
        "bare step",
        "ratio",
        "metrics.jsonl says",
        "validation, images/s",
    ]
    title = f"{bench.network} at {bench.px} px, {bench.images()[0]:,} images an epoch, flips"
    result.tables[title] = table(head, rows)
    head = ["variant", "batch size", "images/s", "peak memory, GiB"]
    result.tables["Variants of the loop"] = table(head, _variants(bench))
    result.tables["Augmentation alone"] = _augmentation(bench)
    result.tables["Features of the frozen part, and scoring of all images"] = _forward(bench)
    return result


def _variants(bench: Bench) -> list[list[str]]:
    rows, epochs = [], bench.scale.of(3, 2)
    large, small = bench.batch_sizes
    whole = AUGMENTATIONS["crop, rotation"]

    def row(name: str, size: int, *overrides: str, **train: Any) -> None:
        rates = measure_loop(
            bench, f"variant-{len(rows)}", *overrides, epochs=epochs, batch_size=size, **train
        )
        peak = f"{rates.peak_gib:.2f}" if rates.peak_gib else "no GPU"
        rows.append([name, f"{size}", spread(rates.loop), peak])

    row("as it is", large)
    row("crop, rotation", large, augment=whole)
    with pytest.MonkeyPatch.context() as patch:
        if device() == "cuda":
            patch.setattr(feeds, "one_ahead", lambda make, device: make())
            row("no batch made ahead", large)
            row("crop, rotation; no batch made ahead", large, augment=whole)
    with pytest.MonkeyPatch.context() as patch:
        if device() == "cuda":
            patch.setattr(pixel_cache, "fits_on_gpu", lambda size: False)
            row("pixels not on the GPU", large)
        else:
            rows.append(["pixels not on the GPU, no batch made ahead", "", "left out: no GPU", ""])
    row("as it is", small)
    row("run.deterministic", large, "run.deterministic=true")  # the last one: it stays set
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    return rows


def _augmentation(bench: Bench) -> str:
    """An epoch of batches that nobody trains on, from pixels on the GPU and from those that are not."""
    rows = []
    for name, augment in AUGMENTATIONS.items():
        px = bench.larger_px if "crop" in augment else bench.px
        found = {}
        for resident in (True, False) if device() == "cuda" else (True,):
            forget_everything()
            path = write_spec(
                bench, "pictures", {"batch_size": bench.batch_sizes[0], "augment": augment}, size_px=px
            )
            one = make_learner(path)
            with pytest.MonkeyPatch.context() as patch:
                if not resident:
                    patch.setattr(pixel_cache, "fits_on_gpu", lambda size: False)
                feed = PixelFeed(one.train, one.stream, one.data.validation, device())
                found[resident] = [_epoch_of(feed, epoch, one.stream.images) for epoch in range(4)][1:]
            one.tracker.close()
        rows.append(
            [name, *(spread(found[each]) if each in found else "left out: no GPU" for each in (True, False))]
        )
    return table(["augmentation", "pixels on the GPU, images/s", "pixels read and copied, images/s"], rows)


def _epoch_of(feed: PixelFeed, epoch: int, images: int) -> float:
    started = now()
    for _ in feed.batches(epoch, 0):
        pass
    return images / (now() - started)


def _forward(bench: Bench) -> str:
    forget_everything()
    weights = bench.root / "weights.pth"
    network = bench.norm_network
    net = build_model(ModelSpec(name=network), 1000, bench.px)
    torch.save(net.state_dict(), weights)
    model = {"name": network, "weights": str(weights), "trainable": "head"}
    path = write_spec(bench, "features", {"model": model, "cached_views": 1, "augment": {"hflip": 0.5}})
    one = make_learner(path)
    rates: list[float] = []
    for i in range(4):  # each time in another folder, so that none is found there
        frozen = FrozenNetwork(
            one.net, one.train, one.data.packed, one.execution, folder=bench.root / f"features-{i}"
        )
        started = now()
        frozen.augmented(one.data.train, 0)
        rates.append(len(one.data.train) / (now() - started))
    rows = [["features of one view, made and kept", spread(rates[1:])]]
    scorer, everything = one.scorer(final=False), np.arange(len(one.data.packed))
    rates.clear()
    for _ in range(4):
        started = now()
        compute_scores([scorer], one.data.packed, everything)
        rates.append(len(everything) / (now() - started))
    rows.append(["scores of all images under one network", spread(rates[1:])])
    one.tracker.close()
    return table([f"{network} at {bench.px} px", "images/s"], rows)


def compiled(bench: Bench) -> Result:
    """The loop with and without run.compile, on whole batches alone: each size is compiled apart."""
    if device() == "cpu":
        return Result(tables={"run.compile": "Left out: no GPU."})
    size, rows = bench.batch_sizes[0], []
    for name, override in (("as it is", "run.compile=false"), ("run.compile", "run.compile=true")):
        started, label = now(), override.partition("=")[2]
        try:
            rates = measure_loop(bench, f"compile-{label}", override, small=True, epochs=8, batch_size=size)
        except Exception as error:  # noqa: BLE001 - a machine without a compiler is no mistake of the project's
            rows.append([name, f"{now() - started:.0f} s", str(error).replace("\n", " ")[:200], ""])
            continue
        rows.append([name, f"{now() - started:.0f} s", spread(rates.loop), f"{rates.peak_gib:.2f}"])
    head = [f"batch size {size}", "eight short epochs, from the start", "images/s", "peak memory, GiB"]
    return Result(tables={"run.compile": table(head, rows)})
