"""One of several processes that train the cells of a table together: `python -m tests.distributed.rank table.json`.

What each step read and lost, and what came of it, lies in a file for each cell and rank; what is compared, tests do.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from jobs.stages import decode
from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import PixelCache
from pipeline.data.splits import read_split
from pipeline.distributed.meeting import join, leave
from pipeline.models.features import FrozenNetwork
from pipeline.models.weights import fetch_weights
from pipeline.own.source import kept_copy
from pipeline.training.attempt import Attempt
from pipeline.training.learner import CellData, Learner
from pipeline.training.loop import train
from pipeline.training.stop_signal import StopFlag

READ = []  # rows of each batch, in the order of the calls


def main(table):
    batches = PixelCache.batches

    def recorded(self, order_N, spans):
        READ.extend(order_N[span].tolist() for span in spans)
        return batches(self, order_N, spans)

    PixelCache.batches = recorded
    group = join(table["ranks"], Path(table["meeting"]), "cpu")
    data = {}
    for name, cell in table["cells"].items():
        run_cell(name, cell, group, data)
    leave()


def run_cell(name, cell, group, data):
    """Train it, perhaps stopped and begun again, and write down what happened."""
    task = decode(cell["task"])
    READ.clear()
    if not data:
        split = read_split(task.split)
        data["it"] = CellData(
            PackedSet.open(task.packed), split.train, split.validation, Path(cell["features"])
        )
    losses, stop = [], StopFlag()
    while True:
        if task.code:
            kept_copy(task.code, task.run.own_code)
        weights = fetch_weights(task.spec.train.model, task.weights_folder)
        attempt = Attempt(task.run, task.identity, leads=group.leads)
        learner = Learner(
            task.spec,
            attempt,
            data["it"],
            weights=weights,
            group=group,
        )
        if micro_batch := cell.get("micro_batch"):
            object.__setattr__(learner.execution, "micro_batch", micro_batch)
        record(learner, losses, stop, cell.get("stop"), cell.get("kill"))
        if "short" in cell:
            run_short(learner, **cell["short"])
        with short_of_features(learner, **cell.get("short_of_features", {})):
            train([learner], stop)
        learner.tracker.close()
        if attempt.error is not None or attempt.is_done:
            break
        stop.reason = None
    folder = task.run.path / f"of-{group.size}"
    folder.mkdir(exist_ok=True)
    found = {"losses": losses, "read": list(READ), "error": str(attempt.error or "")}
    found |= {"train": data["it"].train.tolist(), "model": learner.net.state_dict()}
    torch.save(found | {"scores": scores(learner)}, folder / f"{group.rank}.pt")


def scores(learner):
    keeper = learner.best_keeper.scored
    return None if keeper is None else torch.from_numpy(keeper.logits_NK)


def record(learner, losses, stop, when, kill):
    """Each step's loss; after step `step` the stop flag of rank `rank` alone is set.

    `kill`: all save before the step after `saved`, and kill themselves after the step `killed`.
    """
    record_step, seed_step = learner.record_step, learner.seed_step

    def saved():
        if kill and learner.step == kill["saved"]:
            learner.save()
            learner.writer.wait()
        seed_step()

    learner.seed_step = saved

    def recorded(loss, images):
        losses.append(float(loss))
        record_step(loss, images)
        if kill and learner.step == kill["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if when == {"step": learner.step, "rank": learner.group.rank}:
            stop.reason = "SIGTERM"

    learner.record_step = recorded


def run_short(learner, rank, layer, images, step=None):
    """The one fake: rank `rank` has no room for more than `images` images in a layer; with `step`, once, there."""
    if learner.group.rank != rank:
        return
    left = [1]

    def limited(module, inputs):
        is_due = step is None or (learner.step == step and left)
        if learner.net.training and len(inputs[0]) > images and is_due:
            left.clear()
            raise torch.OutOfMemoryError("CUDA out of memory.")

    learner.net.get_submodule(layer).register_forward_pre_hook(limited)


@contextlib.contextmanager
def short_of_features(learner, rank=None, images=0):
    """The other fake: rank `rank` has no room to make features of more than `images` images at a time."""
    made = FrozenNetwork._made

    def limited(self, order, spans, view):
        for span, found in zip(spans, made(self, order, spans, view), strict=True):
            if learner.group.rank == rank and span.stop - span.start > images:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield found

    FrozenNetwork._made = limited
    try:
        yield
    finally:
        FrozenNetwork._made = made


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(json.loads(Path(sys.argv[1]).read_text()))
