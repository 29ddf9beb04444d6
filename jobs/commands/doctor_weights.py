"""What doctor says of published weights: whether they are at hand, and their licence. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.planning.plan import Plan, weights_folder
from pipeline.errors import PipelineError
from pipeline.models.weights import check_weights, weights_path
from pipeline.spec import ModelSpec
from pipeline.spec.licences import licence_notes
from pipeline.spec.timm_catalogue import PREFIX
from pipeline.spec.torchvision_catalogue import torchvision_weights
from pipeline.storage.files import display_path
from pipeline.storage.typed import typed


def weights_checks(plan: Plan) -> Iterator[tuple[str, bool, str]]:
    """What was tried, whether it is right, and the result: the missing cells' weights, and licences."""
    models = [cell.cell.spec.train.model for cell in plan.cells]
    for model in plan.named_weights():
        yield "weights", *_at_hand(model, weights_folder(plan.root))
    yield from (
        ("licence", True, note) for note in licence_notes((model.name, model.weights) for model in models)
    )


def _at_hand(model: ModelSpec, folder: Path) -> tuple[bool, str]:
    what = f"{model.name} {model.weights}"
    try:
        path = _path(model, folder)
        if path is None or not path.exists():
            return True, f"{what}: not there yet; `{typed('grid')}` fetches them where there is internet"
        check_weights(path)
    except PipelineError as error:
        return False, str(error)
    return True, f"{what}: at hand, {display_path(path)}"


def _path(model: ModelSpec, folder: Path) -> Path | None:
    """Without torchvision, which need not work where doctor is asked; None of weights newer than the table."""
    if model.name.startswith(PREFIX):
        return weights_path(model, folder)
    found = torchvision_weights().get((model.name, model.weights))
    return None if found is None else folder / found.file
