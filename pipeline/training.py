"""The training loop, whole: over cells that share one stream of batches (often a list of one)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.checkpoint import load_checkpoint
from pipeline.data.augment import Augmentation, as_pictures
from pipeline.data.loading import Stream
from pipeline.files import atomic_write
from pipeline.learner import Learner
from pipeline.scoring import Scored, score_split
from pipeline.stopping import StopFlag
from pipeline.tracking import SHOWN_IMAGES

_LOG_EVERY = 25  # steps


def train(learners: Sequence[Learner], stop: StopFlag) -> bool:
    """Train every learner to its last epoch, from wherever it stands; True when done, False when stopped.

    All share data, augmentation, batch size, epochs and seed, and so one stream of batches. A stop
    saves at the step's end; starting again goes on with the very same steps.
    """
    first = learners[0]
    recipe, data, settled = first.train, first.data, first.settled
    stream = Stream(data.packed, data.train, recipe.batch_size, recipe.seed)
    steps_per_epoch = stream.steps_per_epoch

    while first.epoch < recipe.epochs:
        epoch = first.epoch
        augmentation = Augmentation(recipe.augment, recipe.seed, epoch, len(data.train))
        for learner in learners:
            learner.training_mode()
        started, images_seen, steps = time.monotonic(), 0, 0

        for batch in stream.batches(epoch, first.step - epoch * steps_per_epoch):
            images_BHWC = torch.from_numpy(batch.images_BHWC).to(settled.device, non_blocking=True)
            inputs_BCHW = augmentation(images_BHWC, batch.positions_B, recipe.image_px)
            targets_BK = torch.from_numpy(batch.targets_BK).to(settled.device).float()

            for learner in learners:
                if learner.step == 0:
                    learner.tracker.training_images(as_pictures(inputs_BCHW[:SHOWN_IMAGES]))
                # what a network draws itself (dropout) is a function of seed and step, like the batch
                torch.manual_seed((recipe.seed << 32) + learner.step)
                rate = learner.set_learning_rate(steps_per_epoch)
                with settled.autocast():
                    logits_BK = learner.net(inputs_BCHW)
                loss = learner.loss(logits_BK.float(), targets_BK)
                learner.optimizer.zero_grad(set_to_none=True)
                learner.scaler.scale(loss).backward()
                learner.scaler.step(learner.optimizer)
                learner.scaler.update()
                learner.count(loss, len(targets_BK))

                if learner.step % _LOG_EVERY == 0:
                    learner.mean_loss()  # raises once it is not finite
                    values = {"train/loss_step": float(loss.detach()), "train/lr_step": rate}
                    learner.tracker.log(learner.step, epoch + 1, values)
            images_seen += len(targets_BK)
            steps += 1

            at_epoch_end = first.step == (epoch + 1) * steps_per_epoch
            due = time.monotonic() - first.saved_at > 60 * first.spec.run.save_every_min
            if (stop or due) and not at_epoch_end:  # an epoch's end saves anyway
                for learner in learners:
                    learner.save()
            if stop and not at_epoch_end:
                print(
                    f"stopped by {stop.reason} at step {first.step}; saved, starting again goes on",
                    flush=True,
                )
                return False

        seconds = max(time.monotonic() - started, 1e-9)
        images_per_s, seconds_per_step = images_seen / seconds, seconds / max(steps, 1)
        for learner in learners:
            values = learner.end_epoch(_validate(learner), images_per_s, seconds_per_step)
            print(_epoch_line(learner, values), flush=True)
        if stop and first.epoch < recipe.epochs:
            print(f"stopped by {stop.reason} after epoch {first.epoch}; saved", flush=True)
            return False

    for learner in learners:
        _finish(learner)
    return True


def _validate(learner: Learner) -> Scored:
    data = learner.data
    return score_split(
        learner.net, data.packed, data.validation, image_px=learner.train.image_px, settled=learner.settled
    )


def _finish(learner: Learner) -> None:
    """Score validation under the best weights; with that the cell's artifacts are whole."""
    best = load_checkpoint(learner.run.checkpoint_best, learner.settled.device)
    learner.net.load_state_dict(best["model"])
    scored = _validate(learner)
    learner.finish(best["model"], scored)
    write_scores(learner.run.scores_val, scored, learner.data.packed.labels)
    learner.tracker.close()


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
    by = learner.train.best_by
    best = learner.best or {}
    return (
        f"epoch {learner.epoch}/{learner.train.epochs}  loss {values['train/loss']:.4f}  "
        f"validation {by} {values[f'validation/{by}']:.4f}  (best {best.get('value', 0):.4f} in epoch "
        f"{best.get('epoch')})  {values['train/images_per_s']:.0f} images/s"
    )
