"""The whole training loop: over cells that share one stream of batches (often a list of one)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.inputs import as_pictures
from pipeline.data.transfer import wait_for_copies
from pipeline.errors import TrainingError
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.kept_features import Stopped
from pipeline.models.scoring import Scored, release_memory
from pipeline.progress import BATCH, begin_epoch, report
from pipeline.spec import Preprocessing, in_training
from pipeline.storage.files import atomic_write
from pipeline.tracking.tracker import SHOWN_IMAGES
from pipeline.training.checkpointing import Checkpointer
from pipeline.training.feeds import Feed, build_feed
from pipeline.training.gradients import backward
from pipeline.training.learner import Learner
from pipeline.training.memory import make_room, postpone, update_weights
from pipeline.training.stop_signal import StopFlag

_LOG_EVERY = 25  # steps


def train(learners: Sequence[Learner], stop: StopFlag) -> None:
    """Train every learner to its last epoch, from wherever it stands, or until a stop.

    All share data, augmentation, batch size and seed, and so one stream of batches; each step of each is
    what it would be alone. One that is ahead (they were killed at different steps) waits for the others;
    one that fails drops out and leaves them untouched. A stop saves at the step's end; starting again
    resumes with the very same steps. Networks that want pictures normalised in another way take turns.
    """
    if not learners:
        return
    if len(groups := _by_preprocessing(learners)) > 1:
        for group in groups:
            train(group, stop)
        return
    together = learners[0].group
    if together.size > 1 and len(learners) > 1:
        raise TrainingError(
            f"{together.size} processes train one cell at a time, not {len(learners)}: set grid.share_process: false"
        )
    checkpointer = Checkpointer(learners[0].spec.run)
    try:
        feed = build_feed(learners[0], lambda: bool(stop))
    except Stopped:
        _report_interruption(learners, stop)
        return
    steps_per_epoch, epochs = feed.steps_per_epoch, max(learner.train.epochs for learner in learners)

    # ---------------------------------------------------------------- killed between last epoch and end
    for learner in learners:
        if learner.has_ended and learner.attempt.error is None:
            _finish(learner, feed)

    # ---------------------------------------------------------------- the epoch of those furthest behind
    while running := _still_training(learners):
        position = min(learner.step for learner in running)
        epoch = position // steps_per_epoch
        end = (epoch + 1) * steps_per_epoch
        running = [learner for learner in running if learner.epoch == epoch]
        for learner in running:
            learner.training_mode()
        begin_epoch(epoch + 1, epochs)
        started, images_seen, steps, stopping = time.monotonic(), 0, 0, False
        together.exchanged_s = 0.0

        # ------------------------------------------------------------ one step of each
        for inputs_BCHW, targets_BK in _batches(feed, position, running, learners):
            active = [learner for learner in _still_training(running) if learner.step == position]
            for learner in active:
                if not learner.is_training:
                    continue  # it made room for one before it
                with learner.attempt.isolated():
                    if len(learners) > 1:  # each keeps the threads of its first start
                        learner.execution.apply()
                    _step(learner, inputs_BCHW, targets_BK, _in_memory(active, learners))
            running = _still_training(running)
            if not running:
                break  # the last of them failed
            position += 1
            done = sum(learner.step == position for learner in active)
            images_seen += len(targets_BK) * done
            steps += done
            report(BATCH, position - epoch * steps_per_epoch, steps_per_epoch, images_seen)

            # -------------------------------------------------------- save; at an epoch's end after validation
            stopping = together.any(bool(stop))
            if stopping and position < end:
                break
            if checkpointer.due and position < end:
                checkpointer.save(_still_training(active))

        if together.size > 1 and not running:
            return  # what has gone wrong here, the others notice
        stopping = stopping or together.any(bool(stop))  # perhaps while features were being made
        if stopping and running and position < end:
            checkpointer.save(running)
            _report_interruption(running, stop)
            return

        # ------------------------------------------------------------ end of epoch: validate all in one pass
        running = _still_training(running)
        wait_for_copies()  # a GPU may be steps behind
        seconds = max(time.monotonic() - started, 1e-9)
        shares = {"train/exchange_share": together.exchanged_s / seconds} if together.size > 1 else {}
        for learner, logits_NK in zip(running, _validate(running, feed), strict=True):
            with learner.attempt.isolated():
                scored = Scored.of(logits_NK, learner.data.packed, learner.data.validation)
                speeds = {
                    "train/images_per_s": round(images_seen / seconds, 1),
                    "train/seconds_per_step": round(seconds / max(steps, 1), 6),
                }
                values = learner.end_epoch(scored, speeds | shares)
                print(_epoch_line(learner, values), flush=True)

        # ------------------------------------------------------------ save, and finish those that have ended
        stopped = stopping or together.any(bool(stop))
        running = [learner for learner in running if learner.attempt.error is None]
        ended = [learner for learner in running if learner.has_ended]
        checkpointer.save(running if stopped or checkpointer.affordable else ended)
        for learner in ended:
            if learner.attempt.error is None:  # it could be saved
                _finish(learner, feed)
        if stopped:
            _report_interruption(_still_training(running), stop)
            return


def _by_preprocessing(learners: Sequence[Learner]) -> list[list[Learner]]:
    groups: dict[Preprocessing, list[Learner]] = {}
    for learner in learners:
        groups.setdefault(learner.train.model.preprocessing, []).append(learner)
    return list(groups.values())


def _still_training(learners: Sequence[Learner]) -> list[Learner]:
    return [learner for learner in learners if learner.is_training]


def _in_memory(running: Sequence[Learner], learners: Sequence[Learner]) -> list[Learner]:
    """Those that are not done, and hold memory: those that run, then those that are ahead and wait already."""
    rest = _still_training(learners)
    return sorted(rest, key=lambda learner: learner not in running)


def _batches(
    feed: Feed, position: int, running: Sequence[Learner], learners: Sequence[Learner]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rest of the epoch from step `position` on; a batch that finds no room on the GPU is made again.

    Ends early where it is stopped while features are made, and where the last one that runs finds no room.
    """
    tries = 0
    while True:
        try:
            for batch in feed.batches(*divmod(position, feed.steps_per_epoch)):
                yield batch
                position, tries = position + 1, 0
            return
        except Stopped:
            return
        except torch.OutOfMemoryError as error:
            others = _in_memory(running, learners)
            if tries and len(others) < 2:
                for learner in others:
                    learner.attempt.fail(error)  # and of those that wait none
                return
        release_memory()
        if tries:
            postpone(others[-1])
        tries += 1


def _step(learner: Learner, inputs_BCHW: Tensor, targets_BK: Tensor, running: Sequence[Learner]) -> None:
    """One step of one learner, of those that run beside it: forward, backward, clip, update, average, log."""
    recipe = learner.train
    if learner.step == 0 and recipe.cached_views is None:
        shown = as_pictures(inputs_BCHW[:SHOWN_IMAGES], recipe.model.preprocessing)
        learner.tracker.training_images(shown)
    rate = learner.set_learning_rate()
    learner.statistics.keep()
    tries = 0
    learner.seed_step()
    while (loss := backward(learner, inputs_BCHW, targets_BK)) is None:
        learner.statistics.restore()
        if not make_room(learner, running, len(targets_BK), tries):
            return
        running = [each for each in running if not each.postponed]
        tries += 1
        learner.seed_step()
    if recipe.clip_grad_norm:
        learner.scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.net.parameters(), recipe.clip_grad_norm)
    if not update_weights(learner, running):
        return
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)  # the next learner needs the memory
    learner.record_step(loss, len(targets_BK))
    if learner.average:
        learner.average.update(learner.net, learner.step)

    if learner.step % _LOG_EVERY == 0:
        learner.mean_loss()  # raises once it is not finite
        values = {"train/loss_step": float(loss), "train/lr_step": rate}
        values |= learner.watch.scale(learner.scaler, learner.step)
        learner.tracker.log(learner.step, learner.epoch + 1, values)


def _validate(learners: Sequence[Learner], feed: Feed, *, final: bool = False) -> list[Tensor]:
    """Logits of the validation images under each, in one pass over them."""
    return feed.logits([learner.scorer(final=final) for learner in learners])


def _finish(learner: Learner, feed: Feed) -> None:
    """Score validation under the best weights; with that the cell's artifacts are complete."""
    with learner.attempt.isolated():
        learner.writer.wait()
        group, keeper = learner.group, learner.best_keeper
        if learner.epoch < learner.train.epochs and keeper.best is not None:
            print(f"stopped early after epoch {learner.epoch}: the best is {keeper.best.epoch}", flush=True)
        scored = learner.final_scores
        model = None
        if group.leads and (scored is None or not keeper.thresholds_saved):
            model = load_checkpoint(learner.run.checkpoint_best, learner.execution.device)["model"]
        if scored is None:
            if model is not None:
                learner.scored_net.load_state_dict(model)
            group.weights_from_leader(learner.scored_net)
            (logits_NK,) = _validate([learner], feed, final=True)
            scored = Scored.of(logits_NK, learner.data.packed, learner.data.validation)
        if not group.leads:
            learner.attempt.done()
            return
        if model is not None:
            keeper.save(model, scored)
        learner.show_result(scored)
        write_scores(learner.run.scores_val, scored, learner.data.packed.labels)
        learner.tracker.close()
        learner.writer.wait()
        learner.attempt.done()


def write_scores(path: Path, scored: Scored, labels: Sequence[str]) -> None:
    """`ids labels scores targets` as .npz; equal scores are equal bytes."""
    with atomic_write(path) as file:
        np.savez(
            file,
            ids=np.array(list(scored.ids)),
            labels=np.array(labels),
            scores=scored.scores_NK,
            targets=scored.targets_NK,
        )


def _report_interruption(learners: Sequence[Learner], stop: StopFlag) -> None:
    for learner in learners:
        with learner.attempt.isolated():
            learner.writer.wait()
            kept = "Checkpoint saved" if learner.step else "What is made of its features is kept"
            print(
                f"Interrupted by {stop.reason} at step {learner.step}. {kept}; run the same command to resume.",
                flush=True,
            )


def _epoch_line(learner: Learner, values: dict[str, float]) -> str:
    by, best = learner.train.monitor, learner.best_keeper.best
    text = (
        f"epoch {learner.epoch}/{learner.train.epochs}  loss {values['train/loss']:.4f}  "
        f"validation {in_training(by)} {values[f'validation/{by}']:.4f}"
    )
    text += f"  (best {best.value:.4f} in epoch {best.epoch})" if best else ""
    return f"{text}  {values['train/images_per_s']:.0f} images/s"
