"""When a GPU has no room for a step: what is given up, in order, and what is put back before the step is repeated.

First memory that nobody needs (resident pixels, what torch caches), and the step is tried once more as it is. Then
the last of several cells waits until the others are done. Then the batch goes through in halves.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.data.transfer import tensors_to_host, wait_for_copies
from pipeline.errors import TrainingError
from pipeline.models.scoring import release_memory
from pipeline.training.learner import Learner

_SECOND_TRIES = 10  # of a process; where it goes on, steps are lost time


def make_room(learner: Learner, running: Sequence[Learner], batch: int, tries: int) -> bool:
    """Whether `learner` may try its step of `batch` images again, after `tries` that found no room.

    False: it is the one that waits for the others. Raises TrainingError where nothing is left to give up.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    release_memory()
    if tries == 0 and learner.second_tries < _SECOND_TRIES:
        learner.second_tries += 1
        print(f"out of GPU memory at step {learner.step + 1}: trying once more", flush=True)
        return True
    if len(running) > 1:
        postpone(running[-1])
        return running[-1] is not learner
    _halve_micro_batch(learner, batch)
    return True


def _halve_micro_batch(learner: Learner, batch: int) -> None:
    """Half as many images at a time, until the end of this process."""
    before = min(learner.execution.micro_batch or batch, batch)
    least = max(learner.statistics.least_images, learner.group.size)  # of all ranks together
    if before <= least:
        number = "one image" if before == 1 else f"{before} images"
        raise TrainingError(
            f"out of GPU memory with {number} at a time; use a smaller train.image_px or network"
        )
    learner.execution = replace(learner.execution, micro_batch=max(-(-before // 2), least))
    print(
        f"out of GPU memory at step {learner.step + 1}: {learner.execution.micro_batch} images at a time from now "
        f"on; gradients are summed up, train.batch_size {learner.train.batch_size} stays",
        flush=True,
    )


def postpone(learner: Learner) -> None:
    """Take a cell off the GPU; it goes on from here in this process, once the others are done."""
    with learner.attempt.isolated():
        print(
            f"out of GPU memory beside the other cells of this process: waits at step {learner.step} until they "
            "are done. grid.share_process: false gives each cell a process",
            flush=True,
        )
        if learner.step:
            learner.save()
            learner.writer.wait()
    learner.leave_device()


def update_weights(learner: Learner, running: Sequence[Learner]) -> bool:
    """The optimizer's step; its first one, which takes the most memory, is tried again where that ran out.

    False: the learner waits for the others. Raises TrainingError where nothing is left to give up.
    """
    # a first step makes the optimizer's state; a later one that breaks off cannot be undone
    is_first = learner.step in (0, learner.train.freeze_backbone_epochs * learner.stream.steps_per_epoch)
    before = tensors_to_host(_trained(learner)) if is_first and _has_limit(learner) else None
    state = copy.deepcopy(learner.optimizer.state_dict()) if before is not None else {}  # of a head at most
    tries = 0
    while True:
        try:
            learner.scaler.step(learner.optimizer)
            return True
        except torch.OutOfMemoryError as error:
            if before is None or (tries and len(running) == 1):  # some weights may have changed, and some not
                raise TrainingError(
                    "out of GPU memory while the weights were changed; the last save is kept. Use a smaller "
                    "train.batch_size or network"
                ) from error
        wait_for_copies()
        torch._foreach_copy_(list(_trained(learner).values()), list(before.values()))
        learner.optimizer.load_state_dict(state)
        release_memory()
        if tries:
            postpone(running[-1])
            if running[-1] is learner:
                return False
            running = running[:-1]
        tries += 1


def _has_limit(learner: Learner) -> bool:
    """Whether its device refuses memory; on a CPU the kernel kills instead, and nothing can be tried again."""
    return learner.execution.device != "cpu"


def _trained(learner: Learner) -> dict[str, Tensor]:
    """The weights that the optimizer changes."""
    return {name: p.detach() for name, p in learner.net.named_parameters() if p.requires_grad}
