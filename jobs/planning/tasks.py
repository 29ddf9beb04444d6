"""What a plan asks to be run: a task per stage and cell, and the resources it wants. Torch-free."""

from __future__ import annotations

from typing import Any

from jobs.clusters.profile import Profile
from jobs.planning.plan import Plan, PlannedCell, PlannedData, data_root
from jobs.stages import Evaluate, Submit, Train, Wrangle
from pipeline.spec import TrainSpec
from pipeline.spec.grid import matches
from pipeline.spec.identity import digest

_PACKING = {"cells_per_job", "side_by_side"}


def wanted(cell: PlannedCell, profile: Profile) -> Profile:
    """The profile as this cell wants it: changed by the spec's `run.resources` that match the cell."""
    for rule in cell.cell.spec.run.resources:
        if matches(cell.cell.spec, rule.when):
            train = rule.model_dump(exclude={"when", *_PACKING}, exclude_none=True)
            packing = rule.model_dump(include=_PACKING, exclude_none=True)
            changed = {"train": profile.train.model_copy(update=train), **packing}
            profile = profile.model_copy(update=changed)
    return profile


def train_task(plan: Plan, cell: PlannedCell) -> Train:
    """The task that trains a cell."""
    return Train(
        run=str(cell.run.path),
        spec=cell.cell.spec.model_dump_json(),
        identity=cell.identity,
        packed=str(cell.data.packed),
        split=str(cell.data.split),
        weights_folder=str(data_root(plan.root) / "weights"),
        stream=stream_of(cell.cell.spec.train, cell.data.digest) if plan.loaded.spec.grid.together else "",
    )


def evaluate_task(plan: Plan) -> Evaluate:
    """The task that makes the leaderboard."""
    data, evaluation = plan.datasets[0], plan.evaluation
    return Evaluate(
        experiment=str(plan.experiment.path),
        cells=evaluation.cells,
        evaluate=evaluation.evaluate.model_dump_json(),
        submission=evaluation.submission.model_dump_json(),
        best_by=plan.loaded.spec.train.best_by,
        packed=str(data.packed),
        split=str(data.split),
        data_digests=evaluation.data_digests,
    )


def submit_task(plan: Plan, cells: tuple[str, ...] | None) -> Submit:
    """The task that predicts and writes the submission of `cells`, or of those selected by then."""
    spec = plan.loaded.spec
    tests = {name: (str(t.packed), str(t.split) if t.split else None) for name, t in plan.tests.items()}
    evaluate = spec.evaluate.model_dump_json()
    return Submit(str(plan.experiment.path), cells, tests, spec.run.device, evaluate)


def wrangle_task(plan: Plan, data: PlannedData) -> Wrangle:
    """The task that packs a data set."""
    root = str(data_root(plan.root))
    return Wrangle(data=data.data.model_dump_json(), data_root=root, test=data.split is None)


# what each cell may have of its own; any other field of `train` sets the batches apart
_OWN = {
    *("model", "loss", "optimizer", "schedule", "epochs", "precision", "best_by", "ema_epochs", "clip_norm"),
    *("head_first_epochs", "patience_epochs", "average_flips"),
}


# of a network whose features are kept: what does not change them
_OF_HEAD = {"head_bias", "head_hidden", "head_dropout"}


def stream_of(train: TrainSpec, data_digest: str) -> str:
    """Equal for cells that are trained on the very same batches."""
    own: dict[str, Any] = dict.fromkeys(_OWN, True)
    if train.feature_views:  # those of one frozen network
        own["model"] = _OF_HEAD
        del own["precision"]
    return digest([data_digest, train.model_dump(mode="json", exclude=own)])
