"""One cell in training: network, optimizer, schedule, best epoch; saved and resumed as one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loading import Rows, Stream
from pipeline.data.packed import PackedSet
from pipeline.data.sampling import expected_repeats, label_shares
from pipeline.distributed.group import SOLO, Group
from pipeline.distributed.rounds import Rounds
from pipeline.metrics.multilabel import all_metrics
from pipeline.metrics.thresholds import decide
from pipeline.models.build import (
    build_model,
    head_of,
    init_bias_to_prior,
    refuse_other_size,
    set_training_mode,
    trainable_part,
)
from pipeline.models.scoring import Scored, Scorer
from pipeline.spec import SamplingSpec, Spec, needs_decisions
from pipeline.spec.identity import flatten
from pipeline.storage.write_behind import Writer
from pipeline.tracking.tracker import SilentTracker, Tracker
from pipeline.training.attempt import Attempt
from pipeline.training.batch_norm import Statistics, refuse_single_images
from pipeline.training.compiling import compiled
from pipeline.training.divergence import Watch
from pipeline.training.early_stopping import BestEpoch, BestKeeper
from pipeline.training.ema import WeightAverage
from pipeline.training.execution import execution_of
from pipeline.training.losses import build_loss
from pipeline.training.optim import build_optimizer
from pipeline.training.schedules import PlateauState, lr_scale, momentum_at
from pipeline.training.state import CHECKPOINT_VERSION, TrainState


@dataclass(frozen=True)
class CellData:
    """What a cell is trained and validated on."""

    packed: PackedSet
    train: Rows
    validation: Rows
    features: Path | None = None  # where kept ones are; None: beside the packed set


class Learner:
    """One cell in training. `step` and `epoch` count what is done; both start at 0."""

    def __init__(
        self, spec: Spec, attempt: Attempt, data: CellData, *, weights: Path | None, group: Group = SOLO
    ) -> None:
        self.spec, self.train, self.attempt, self.data = spec, spec.train, attempt, data
        self.run, self.identity, self.group = attempt.run, attempt.identity, group
        self.code = self.run.own_code if self.train.own_calls else None
        # read once: on a shared disk, nodes may see files of different age
        found = TrainState.load(self.run, self.identity) if group.leads else None
        state, problems = group.from_leader(found)
        for problem in problems:
            then = "resuming from the previous one" if state else "training from the start"
            print(f"Ignoring damaged checkpoint: {problem}; {then}.", flush=True)
        self.execution = execution_of(spec.run, self.train.precision, state, self.run, group)
        self.execution.apply()
        torch.manual_seed(self.train.seed)
        self._build_network(weights)
        self._build_optimizer()
        self.plateau = PlateauState()
        self.step = self.epoch = 0
        self.postponed = False  # taken off the GPU until others are done
        self.second_tries = 0  # of steps that found no memory
        self.writer = Writer(behind=self.execution.device != "cpu")  # a CPU's memory has no room for a copy
        self.best_keeper = BestKeeper(self.run, self.train.monitor, self._description(), self.writer)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.execution.device)
        self.images = 0
        if state:
            self._restore(state)
        settings = flatten(spec.model_dump(include={"data", "train"}))
        self.tracker = (Tracker if group.leads else SilentTracker)(
            self.run, self.step, settings, state.metrics if state else None,
            monitor=self.train.monitor, ranked_by=spec.evaluate.select_by,
        )  # fmt: skip

    def _build_network(self, weights: Path | None) -> None:
        """Network, batches and weight average; the order of random draws is part of the result."""
        model, data = self.train.model, self.data
        targets_NK = data.packed.labels_NK[data.train]
        net = build_model(model, len(data.packed.labels), self.train.image_px, weights, self.code)
        if self.train.eval_image_px is not None:
            refuse_other_size(net, model.name, self.train.eval_image_px)
        sampling = self.train.sampling
        repeats_N = None if sampling == SamplingSpec() else expected_repeats(sampling, targets_NK)
        self.stream = Stream(data.packed, data.train, self.train.batch_size, self.train.seed, repeats_N)
        if model.head_bias == "prior":
            init_bias_to_prior(net, model.name, label_shares(targets_NK, repeats_N))
        self.net = net.to(self.execution.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs leave memory_format out
        self._trainable = trainable_part(self.net, model)
        refuse_single_images(self._trainable, self.train.batch_size, self.train.model.name)
        # what batches go through: with cached features, the rest of the network was run already
        self.trained = self.net if self.train.cached_views is None else self._trainable
        if self.execution.compiled:
            self.trained = compiled(self.trained)
        self.statistics = Statistics(self._trainable)
        alone = self.group.size == 1
        self.rounds = None if alone else Rounds(self.group, self._trainable, self.execution.device)
        horizon = self.train.ema_epochs * self.stream.steps_per_epoch
        self.average = WeightAverage(self.net, horizon) if horizon else None

    def _build_optimizer(self) -> None:
        targets_NK = self.data.packed.labels_NK[self.data.train]
        self.optimizer = build_optimizer(
            self.train.optimizer, self.net, head_of(self.net, self.train.model.name)
        )
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = self.execution.scaler()
        self.loss = build_loss(self.train.loss, targets_NK, self.execution.device, self.code)
        self._cpu_loss = build_loss(self.train.loss, targets_NK, code=self.code)
        self.watch = Watch(self._cpu_loss, self.train.loss.name, targets_NK.shape[1])

    def _description(self) -> dict[str, Any]:
        """What predicting needs besides the weights."""
        packed = self.data.packed
        return {
            "version": CHECKPOINT_VERSION,
            "identity": self.identity,
            "model_spec": self.train.model.model_dump(),
            "labels": list(packed.labels),
            "built_px": self.train.image_px,
            "preprocessing": {
                "image_px": self.train.eval_image_px or self.train.image_px,
                "packed_px": packed.size_px,
                "resize": self.spec.data.resize,
                "packed_interpolation": packed.interpolation,
                "range": packed.range,
                "mean": list(self.train.model.preprocessing.mean),
                "std": list(self.train.model.preprocessing.std),
                "interpolation": self.train.model.preprocessing.interpolation,
                "flips": self.train.tta_hflip,
            },
            "precision": self.execution.precision,
        }

    @property
    def is_training(self) -> bool:
        """Whether epochs are left, it is not postponed, early stopping has not ended it, and nothing went wrong."""
        return self.attempt.error is None and not self.postponed and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether its last epoch is trained, or early stopping has ended it."""
        patience_is_over = self.best_keeper.patience_is_over(self.train.patience_epochs)
        return patience_is_over or self.epoch >= self.train.epochs

    def set_learning_rate(self) -> float:
        """Set the rate of the coming step on every group, and return the head's."""
        when = self.train.schedule, self.step, self.stream.steps_per_epoch, self.train.epochs
        scale, momentum = lr_scale(*when), momentum_at(*when)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * scale * self.plateau.factor
            if momentum is not None and group.get("momentum"):
                group["momentum"] = momentum
            elif momentum is not None and "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def scored_net(self) -> torch.nn.Module:
        """The network that is validated and kept: the average of the weights where there is one."""
        return self.average.net if self.average else self.net

    def training_mode(self) -> None:
        """Dropout and batch statistics on in the part that learns: in the first epochs perhaps the head alone."""
        head_only = self.epoch < self.train.freeze_backbone_epochs
        set_training_mode(
            self.net, head_of(self.net, self.train.model.name) if head_only else self._trainable
        )

    def scorer(self, *, final: bool) -> Scorer:
        """What scores images: the epoch's network as it trains, or (`final`) with the spec's size and flips."""
        px = (self.train.eval_image_px if final else None) or self.train.image_px
        preprocessing = self.train.model.preprocessing
        return Scorer(
            self.scored_net, px, self.execution, preprocessing, flips=final and self.train.tta_hflip
        )

    @property
    def final_scores(self) -> Scored | None:
        """Scores of the best weights, where an epoch's validation scored them just as the final pass would."""
        return self.best_keeper.scored if self.scorer(final=True) == self.scorer(final=False) else None

    def seed_step(self) -> None:
        """What a network draws itself (dropout) is a function of seed, step and rank."""
        own = self.group.rank * 0x9E3779B97F4A7C15  # far from the numbers of other steps and seeds
        torch.manual_seed(((self.train.seed << 32) + self.step + own) % 2**64)

    def record_step(self, loss: Tensor, images: int) -> None:
        """Take a finished step into the epoch's mean loss."""
        self.loss_sum += loss.detach().double() * images
        self.images += images
        self.step += 1

    def leave_device(self) -> None:
        """Free its memory there, and close its files; it is built again from what is saved."""
        self.postponed = True
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.net.to("cpu")
        if self.average:
            self.average.net.to("cpu")
        self.tracker.close()

    def mean_loss(self) -> float:
        """Mean training loss of the epoch so far; a DivergedError once it is not finite."""
        return self.watch.loss(float(self.loss_sum) / max(self.images, 1), self.step, self.epoch + 1)

    def end_epoch(self, scored: Scored, speeds: dict[str, float]) -> dict[str, float]:
        """Take the epoch's validation in: log it beside `speeds`, keep the best. Returns what was logged."""
        decisions_NK = decide(scored.scores_NK, np.full(scored.scores_NK.shape[1], 0.5, np.float32))
        metrics = all_metrics(scored.scores_NK, decisions_NK, scored.targets_NK)
        targets = torch.from_numpy(scored.targets_NK).float()
        loss = float(self._cpu_loss(torch.from_numpy(scored.logits_NK), targets))
        values = {
            "train/loss": self.mean_loss(),
            "train/lr": float(self.optimizer.param_groups[0]["lr"]),
            **speeds,
            "validation/loss": loss,
            **{f"validation/{name}": value for name, value in metrics.items()},
        }
        self.epoch += 1
        self.loss_sum.zero_()
        self.images = 0
        epoch = BestEpoch(values[f"validation/{self.train.monitor}"], self.epoch, loss)
        informative = not needs_decisions(self.train.monitor) or bool(decisions_NK.any())
        is_best = self.best_keeper.offer(epoch, self.scored_net, scored, informative=informative)
        self.plateau = self.plateau.after_epoch(self.train.schedule, is_best=is_best, informative=informative)
        self.tracker.score_histograms(self.step, scored.scores_NK, scored.targets_NK)
        # before the save: a resume drops it, never lacks it
        best = self.best_keeper.best
        self.tracker.log(self.step, self.epoch, values, best=(best.epoch, best.value) if best else None)
        return values

    def save(self) -> None:
        """Write the whole state of training, and first the best weights where they are new.

        One never goes ahead of the other: after a kill both are those of the last save. Raises
        DivergedError instead of replacing a good state by one that is not finite. Beside a GPU the disk is
        not waited for, but by the next save, which raises what this one has met. Of several ranks the first one
        saves, for all.
        """
        if not self.group.leads:
            return
        self.writer.wait()
        self.run.check_owned()
        self.mean_loss()
        self.watch.weights(self.net, self.step, self.epoch + 1)
        metrics_digest = self.tracker.flush()
        # of the last epoch, and scored for good: once is enough
        self.best_keeper.save_if_new(None if self.is_training else self.final_scores)
        TrainState(
            identity=self.identity,
            execution=asdict(self.execution),
            epoch=self.epoch,
            step=self.step,
            model=self.net.state_dict(),
            average=self.average.net.state_dict() if self.average else None,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            plateau=asdict(self.plateau),
            best=asdict(self.best_keeper.best) if self.best_keeper.best else None,
            metrics=metrics_digest,
            loss_sum=float(self.loss_sum),
            images=self.images,
            random_state=torch.get_rng_state(),
        ).save(self.run, self.writer)
        self.writer(self.attempt.saved)

    def show_result(self, scored: Scored) -> None:
        """The final scores on validation, for TensorBoard."""
        packed, rows = self.data.packed, self.data.validation
        self.tracker.result(
            self.step,
            self.epoch,
            packed.labels,
            scored.scores_NK,
            scored.targets_NK,
            lambda positions: packed.gather(rows[positions]),
        )

    def _restore(self, state: TrainState) -> None:
        self.net.load_state_dict(state.model)
        if self.average:
            assert state.average is not None
            self.average.net.load_state_dict(state.average)
        self.optimizer.load_state_dict(state.optimizer)
        self.scaler.load_state_dict(state.scaler)
        self.plateau = PlateauState(state.plateau["factor"], state.plateau["bad_epochs"])
        self.epoch, self.step = state.epoch, state.step
        if state.best:  # version 0.1 did not count apart how long it waited
            self.best_keeper.best = BestEpoch(**{"waited": state.epoch - state.best["epoch"], **state.best})
        self.loss_sum += state.loss_sum
        self.images = state.images
        torch.set_rng_state(state.random_state)
