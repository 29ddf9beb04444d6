"""MODEL_CARD.md beside what is selected: data, recipe, metrics, limits, how to load. Torch-free.

Markdown under YAML front matter as Hugging Face reads it (https://huggingface.co/docs/hub/model-cards).
It holds no date but that of training and no path of this machine, so equal results are equal bytes.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline.errors import PipelineError
from pipeline.report import card_sections as sections
from pipeline.report.answer import answer
from pipeline.report.facts import CellFacts, Facts
from pipeline.spec.licences import limits
from pipeline.storage.files import atomic_write, read_json
from pipeline.storage.run_dir import RunDir

_KINDS = ("f1", "precision", "recall", "accuracy", "exact_match")  # metrics that Hugging Face has a page of
_MARK = re.compile(r"\n<!-- written by labelgrid, sha256 ([0-9a-f]{64}) -->\n\Z")


def write_card(facts: Facts) -> None:
    """Write the card of what is selected, into its folder, and remove those of cells selected before.

    A card that a person has edited is kept. Why there is none is printed: an evaluation never fails for it.
    """
    cards = {cell.name: RunDir(facts.experiment.path / cell.name).card for cell in facts.cells}
    own = cards.pop(facts.best.name) if facts.best is not None else None
    try:
        if own is None or facts.best is None:
            pass
        elif own.exists() and not is_unedited(own):
            said = "was edited (or damaged) since it was written, and is kept; delete it to have it written again"
            print(f"{own}: {said}", file=sys.stderr)
        else:
            body = card_of(facts, facts.best)
            with atomic_write(own, "w") as file:
                file.write(f"{body}\n<!-- written by labelgrid, sha256 {_digest(body)} -->\n")
        for other in cards.values():
            if other.exists() and is_unedited(other):
                other.unlink()
    except (
        PipelineError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:  # the evaluation is complete
        said = str(error) if isinstance(error, PipelineError) else f"{own}: {type(error).__name__}: {error}"
        print(f"the model card is not written, everything else is: {said}", file=sys.stderr)


def is_unedited(card: Path) -> bool:
    """Whether a card is as it was written."""
    body = card.read_bytes().decode(errors="replace")
    mark = _MARK.search(body)
    return mark is not None and mark[1] == _digest(body[: mark.start()])


def card_of(facts: Facts, best: CellFacts) -> str:
    """The card without its last line; raises OSError or ValueError where report.json cannot be read."""
    report = read_json(RunDir(facts.experiment.path / best.name).report)
    members = [cell for cell in facts.cells if cell.name in facts.selection.cells]
    title = f"{facts.experiment.path.name}: {best.name}"
    parts = [
        ("", [f"# {title}", "", sections.inline(f"The leaderboard: {answer(facts)}")]),
        ("Data", sections.data(facts, members)),
        ("Recipe", sections.recipe(facts, members)),
        ("Metrics", sections.metrics(facts, best, report)),
        ("Decision rule", sections.rule(facts, report)),
        ("Limits", sections.limits(facts, best, report)),
        ("Licence", sections.licence(members)),
        ("How to load", sections.loading(facts, members)),
    ]
    lines = ["---", _front_matter(facts, best, members).rstrip(), "---"]
    for heading, body in parts:
        lines += ["", *([f"## {heading}", ""] if heading else []), *body]
    return "\n".join(lines) + "\n"


def _licence(members: Sequence[CellFacts]) -> dict[str, str]:
    """As the hub wants it: that of weights which limits the use; the pictures' is not known."""
    limiting = [found for cell in members if limits(found := sections.licence_of_weights(cell))]
    if not limiting:
        return {"license": "unknown"}
    if set(limiting) == {"cc-by-nc-4.0"}:
        return {"license": "cc-by-nc-4.0"}
    return {"license": "other", "license_name": ", ".join(dict.fromkeys(limiting))}


def _front_matter(facts: Facts, best: CellFacts, members: Sequence[CellFacts]) -> str:
    names = list(dict.fromkeys(str(cell.settings.get("train.model.name")) for cell in members))
    metrics = [
        {"type": _kind(name), "name": f"{name} (validation)", "value": round(value, 6)}
        for name in dict.fromkeys([facts.by, *sections.SHOWN])
        if (value := best.value(name)) is not None
    ]
    result = {
        "task": {"type": "image-classification", "name": "Multi-label image classification"},
        "dataset": {"type": "own", "name": facts.selection.packed.name if facts.selection.packed else "own"},
        "metrics": metrics,
    }
    content = {
        "library_name": "labelgrid",
        "pipeline_tag": "image-classification",
        **_licence(members),
        "tags": ["image-classification", "multi-label", "labelgrid", *names],
        "metrics": [kind for kind in _KINDS if any(entry["type"] == kind for entry in metrics)],
        "model-index": [{"name": best.name, "results": [result]}],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _kind(metric: str) -> str:
    named = "accuracy" if metric == "label_accuracy" else metric
    return next((kind for kind in _KINDS if named.startswith(kind)), metric)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
