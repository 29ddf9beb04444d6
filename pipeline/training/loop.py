"""The training loop, whole: over cells that share one stream of batches (often a list of one)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import as_pictures
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.features import FeatureFeed, FrozenNetwork
from pipeline.models.scoring import Scored
from pipeline.spec import in_training
from pipeline.storage.files import atomic_write
from pipeline.tracking.tracker import SHOWN_IMAGES
from pipeline.training.checkpointing import Saving
from pipeline.training.feeds import PixelFeed
from pipeline.training.learner import Learner
from pipeline.training.stop_signal import StopFlag

_LOG_EVERY = 25  # steps


def train(learners: Sequence[Learner], stop: StopFlag) -> None:
    """Train every learner to its last epoch, from wherever it stands, or until a stop.

    All share data, augmentation, batch size and seed, and so one stream of batches; each step of each is
    what it would be alone. One that is ahead (they were killed at different steps) waits for the others;
    one that fails drops out and leaves them untouched. A stop saves at the step's end; starting again
    goes on with the very same steps.
    """
    if not learners:
        return
    saving = Saving(learners[0].spec.run)
    feed = _feed(learners[0])
    steps_per_epoch = feed.steps_per_epoch
    for learner in learners:
        # killed between its last epoch and the end
        if not learner.is_training and learner.attempt.error is None:
            _finish(learner, feed)
    while running := [learner for learner in learners if learner.is_training]:
        recipe, data = running[0].train, running[0].data
        position = min(learner.step for learner in running)
        epoch = position // steps_per_epoch
        running = [learner for learner in running if learner.epoch == epoch]
        for learner in running:
            learner.training_mode()
        started, images_seen, steps = time.monotonic(), 0, 0

        for inputs_BCHW, targets_BK in feed.batches(epoch, position - epoch * steps_per_epoch):
            running = [learner for learner in running if learner.is_training]
            if not running:
                break  # the last of them failed
            active = [learner for learner in running if learner.step == position]
            for learner in active:
                with learner.attempt.isolated():
                    if learner.step == 0 and learner.train.cached_views is None:
                        learner.tracker.training_images(as_pictures(inputs_BCHW[:SHOWN_IMAGES]))
                    if len(running) > 1:  # each keeps the threads of its first start
                        learner.execution.apply()
                    # what a network draws itself (dropout) is a function of seed and step, like the batch
                    torch.manual_seed((recipe.seed << 32) + learner.step)
                    rate = learner.set_learning_rate(steps_per_epoch)
                    while (loss := _gradients(learner, inputs_BCHW, targets_BK)) is None:
                        learner.halve_micro_batch(len(targets_BK))
                        torch.manual_seed((recipe.seed << 32) + learner.step)
                    if learner.train.clip_grad_norm:
                        learner.scaler.unscale_(learner.optimizer)
                        nn.utils.clip_grad_norm_(learner.net.parameters(), learner.train.clip_grad_norm)
                    learner.scaler.step(learner.optimizer)
                    learner.scaler.update()
                    learner.optimizer.zero_grad(set_to_none=True)  # the next learner needs the memory
                    learner.count(loss, len(targets_BK))
                    if learner.average:
                        learner.average.update(learner.net, learner.step)

                    if learner.step % _LOG_EVERY == 0:
                        learner.mean_loss()  # raises once it is not finite
                        values = {"train/loss_step": float(loss), "train/lr_step": rate}
                        learner.tracker.log(learner.step, epoch + 1, values)
            position += 1
            images_seen += len(targets_BK) * len(active)
            steps += len(active)

            at_epoch_end = position == (epoch + 1) * steps_per_epoch
            stopped = bool(stop)
            if (stopped or saving.due) and not at_epoch_end:  # which validates first
                saving.save(active)
            if stopped and not at_epoch_end:
                _say_stopped([learner for learner in running if learner.is_training], stop)
                return

        seconds = max(time.monotonic() - started, 1e-9)
        images_per_s, seconds_per_step = images_seen / seconds, seconds / max(steps, 1)
        running = [learner for learner in running if learner.is_training]
        for learner, logits_NK in zip(running, _validate(running, feed), strict=True):
            with learner.attempt.isolated():
                scored = Scored.of(logits_NK, data.packed, data.validation)
                values = learner.end_epoch(scored, images_per_s, seconds_per_step)
                print(_epoch_line(learner, values), flush=True)
        stopped = bool(stop)
        whole = [learner for learner in running if learner.attempt.error is None]
        ended = [learner for learner in whole if not learner.is_training]
        saving.save(whole if stopped or saving.affordable else ended)
        for learner in ended:
            if learner.attempt.error is None:  # it could be saved
                _finish(learner, feed)
        if stopped:
            _say_stopped([learner for learner in running if learner.is_training], stop)
            return


def _feed(learner: Learner) -> PixelFeed | FeatureFeed:
    data = learner.data
    if learner.train.cached_views is None:
        return PixelFeed(learner.train, learner.stream, data.validation, learner.execution.device)
    frozen = FrozenNetwork(learner.net, learner.train, data.packed, learner.execution)
    return FeatureFeed(frozen, learner.stream, data.validation)


def _say_stopped(learners: Sequence[Learner], stop: StopFlag) -> None:
    for learner in learners:
        with learner.attempt.isolated():
            print(
                f"Interrupted by {stop.reason} at step {learner.step}. Checkpoint saved; "
                "run the same command to resume.",
                flush=True,
            )


def _validate(
    learners: Sequence[Learner], feed: PixelFeed | FeatureFeed, *, final: bool = False
) -> list[Tensor]:
    """Logits of the validation images under each, in one pass over them."""
    return feed.logits([learner.scorer(final=final) for learner in learners])


def _gradients(learner: Learner, inputs_BCHW: Tensor, targets_BK: Tensor) -> Tensor | None:
    """Leave the gradients of a batch in the network, and return its loss; None where memory ran out.

    In micro-batches, each weighs by its share of the images: the sum is the mean over the batch, as
    without them. That holds for losses that are means over images; soft F1 becomes the mean of the
    micro-batches' F1, and batch norm sees their statistics.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    parts = -(-len(targets_BK) // (learner.execution.micro_batch or len(targets_BK)))
    losses = []
    try:
        for inputs, targets in zip(
            inputs_BCHW.tensor_split(parts), targets_BK.tensor_split(parts), strict=True
        ):
            with learner.execution.autocast():
                logits = learner.trained(inputs)
            loss = learner.loss(logits.float(), targets)
            loss = loss if parts == 1 else loss * (len(targets) / len(targets_BK))
            learner.scaler.scale(loss).backward()
            losses.append(loss.detach())
    except torch.OutOfMemoryError:
        return None
    return torch.stack(losses).sum()


def _finish(learner: Learner, feed: PixelFeed | FeatureFeed) -> None:
    """Score validation under the best weights; with that the cell's artifacts are complete."""
    with learner.attempt.isolated():
        if learner.epoch < learner.train.epochs and learner.best is not None:
            print(
                f"stopped early after epoch {learner.epoch}: the best is {learner.best['epoch']}", flush=True
            )
        scored = learner.final_scores
        if scored is None or not learner.thresholds_saved:
            model = load_checkpoint(learner.run.checkpoint_best, learner.execution.device)["model"]
            if scored is None:
                learner.scored_net.load_state_dict(model)
                (logits_NK,) = _validate([learner], feed, final=True)
                scored = Scored.of(logits_NK, learner.data.packed, learner.data.validation)
            learner.save_best(model, scored)
        learner.show_result(scored)
        write_scores(learner.run.scores_val, scored, learner.data.packed.labels)
        learner.tracker.close()
        learner.attempt.done()


def write_scores(path: Path, scored: Scored, labels: Sequence[str]) -> None:
    """`ids labels scores targets` as .npz; equal scores are equal bytes."""
    with atomic_write(path) as file:
        np.savez(
            file,
            ids=np.array(scored.ids),
            labels=np.array(labels),
            scores=scored.scores_NK,
            targets=scored.targets_NK,
        )


def _epoch_line(learner: Learner, values: dict[str, float]) -> str:
    by = learner.train.monitor
    best = learner.best or {}
    return (
        f"epoch {learner.epoch}/{learner.train.epochs}  loss {values['train/loss']:.4f}  "
        f"validation {in_training(by)} {values[f'validation/{by}']:.4f}  (best {best.get('value', 0):.4f} in epoch "
        f"{best.get('epoch')})  {values['train/images_per_s']:.0f} images/s"
    )
