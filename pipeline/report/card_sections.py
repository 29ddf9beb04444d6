"""The sections of a model card, each the lines of its Markdown. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.layout import read_dataset, split_path
from pipeline.data.summary import data_summary
from pipeline.errors import PipelineError
from pipeline.evaluation.leaderboard_text import recipes
from pipeline.report.answer import FEW, valued
from pipeline.report.facts import CellFacts, Facts
from pipeline.spec.licences import hub_page, licence_of
from pipeline.spec.licences import limits as limits_of
from pipeline.spec.names import short, text
from pipeline.spec.reading import read_spec
from pipeline.storage.files import read_json_or_empty
from pipeline.storage.run_dir import RunDir

SHOWN = (
    *("f1_micro", "f1_macro", "f1_samples_empty1", "map_macro", "precision_micro", "recall_micro"),
    *("label_accuracy", "exact_match"),
)
_LABELS_SHOWN = 200
_SECTIONS = ("model", "augment", "loss", "sampling", "optimizer", "schedule")
_ONLY_WITH = {  # a setting that does nothing without another
    "crop_ratio": ("crop",), "random_erasing_area": ("random_erasing",), "mix_fraction": ("mixup", "cutmix"),
    "pos_weight_cap": ("pos_weight",), "class_balanced_beta": ("label_weight",),
}  # fmt: skip
_SWAG = "CC BY-NC 4.0, which forbids commercial use (https://github.com/facebookresearch/SWAG)"


def data(facts: Facts, members: Sequence[CellFacts]) -> list[str]:
    """Each packed set and split that a member was trained on: usually one."""
    lines: list[str] = []
    seen = []
    for cell in members:
        packed, split = _sets(facts, cell)
        if (packed, split) in seen:
            continue
        seen.append((packed, split))
        dataset = (read_dataset(packed) if packed else None) or {}
        digest = str(cell.provenance.get("data", "not known"))[:12]
        if packed is None or not dataset:
            lines.append(f"- The packed set (digest {digest}) is not on this machine: sizes are not known.")
            continue
        side = dataset["size_px"]
        way = f"{dataset['resize']}, {dataset.get('interpolation', 'bilinear')}"
        how = f"{side} x {side} pixels, resize {way}, range {text(cell.settings.get('data.range'))}"
        lines += [
            f"- {inline(Path(dataset['source']).name)}, packed as `{packed.name}` (digest {digest}): {how}"
        ]
        lines += [f"- {inline(line.strip())}" for line in data_summary(packed, split).splitlines()]
        counts = read_json_or_empty(split).get("counts", {}) if split else {}
        rows = [[name, str(part["images"]), str(part["negative"])] for name, part in counts.items()]
        lines += ["", *table(["split", "images", "of these without a label"], rows), ""] if rows else []
    return lines


def _sets(facts: Facts, cell: CellFacts) -> tuple[Path | None, Path | None]:
    """The packed set and the split of one cell, where they still are: the grid may have had others too."""
    packed, digest = facts.selection.packed, str(cell.provenance.get("data"))
    if packed is None:
        return None, None
    found = [packed, *sorted(packed.parent.glob(f"*-{digest[:8]}"))]
    own = next((path for path in found if (read_dataset(path) or {}).get("digest") == digest), None)
    if own is None:
        return None, None
    try:
        split = split_path(own, read_spec(RunDir(facts.experiment.path / cell.name).spec).spec.data)
    except PipelineError:  # a list that names its images is gone
        return own, None
    return own, split if split.exists() else None


def recipe(facts: Facts, members: Sequence[CellFacts]) -> list[str]:
    """A table of what each member was trained with; their `spec.yaml` has every setting."""
    columns = [_trained_with(cell, facts) for cell in members]
    rows = [[key, *(column[key] for column in columns)] for key in (columns[0] if columns else ())]
    lines = table(["", *(cell.name for cell in members)], rows)
    own = {cell.row.get("recipe") for cell in members}
    for recipe in recipes(facts.rows):
        if recipe.name in own and len(recipe.rows) > 1:
            seeds = ", ".join(row["cell"] for row in recipe.rows)
            lines += [
                "",
                inline(f"All runs of {recipe.name}: {facts.by} {valued(recipe, facts.by)}; {seeds}."),
            ]
    return [*lines, "", "Every setting is in the `spec.yaml` of the cell's folder."]


def _trained_with(cell: CellFacts, facts: Facts) -> dict[str, str]:
    settings, facts_of_run = cell.settings, cell.provenance
    found = {}
    for section in _SECTIONS:
        prefix = f"train.{section}."
        values = {
            key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)
        }
        if section == "model":
            values["weights"] = weights_of(cell)
        set_ = {key: value for key, value in values.items() if value and value != "none"}
        found[section] = ", ".join(
            f"{key} {text(value)}"
            for key, value in set_.items()
            if any(one in set_ for one in _ONLY_WITH.get(key, (key,)))
        )
    sampling = str(settings.get("train.sampling.name"))
    if sampling != "repeat_factor":  # its threshold is nothing to the others
        negatives = settings.get("train.sampling.negatives", 1)  # 0 leaves negative images out
        found["sampling"] = sampling + (f", negatives {text(negatives)}" if negatives != 1 else "")
    found["model"] += "" if weights_of(cell) != "none" else ", random weights"
    best = cell.best_epoch(facts.curve_by)
    trained = cell.epochs[-1]["epoch"] if cell.epochs else "?"
    found["epochs"] = f"{trained} of {settings.get('train.epochs', '?')}"
    found["best epoch"] = f"{best[0]}, by {facts.curve_by} ({best[1]:.4f})" if best else "not known"
    for key in ("train.image_px", "train.batch_size", "train.seed"):
        found[short(key) if key == "train.seed" else key.removeprefix("train.")] = text(settings.get(key))
    execution, code = facts_of_run.get("execution") or {}, facts_of_run.get("code") or {}
    hardware = (facts_of_run.get("hardware") or {}).get("name", "")
    found["computed on"] = f"{execution.get('device', 'not known')} {hardware}, {execution.get('precision')}"
    found["trained"] = str(facts_of_run.get("started", "not known"))
    changes = " with uncommitted changes" if code.get("uncommitted") else ""
    commit = f"commit {str(code.get('commit'))[:12]}{changes}" if code.get("commit") else "no commit"
    found["code"] = f"{commit}, digest {str(code.get('digest'))[:12]}"
    packages = facts_of_run.get("packages") or {}
    found["packages"] = ", ".join(f"{name} {packages.get(name)}" for name in ("torch", "torchvision"))
    return found


def metrics(facts: Facts, best: CellFacts, report: dict[str, Any]) -> list[str]:
    """Validation with intervals, beside the baselines, and the test set where its labels are known."""
    tested = facts.test.get("metrics", {}) if facts.test.get("cells") == list(facts.selection.cells) else {}
    baselines = {row["cell"]: row for row in facts.baselines}
    guesses = [name for name in ("baseline-blank", "baseline-prior") if name in baselines]
    head = ["metric", "validation", "95 %", *guesses, *(["test", "95 % "] if tested else [])]
    rows = []
    for name in dict.fromkeys([facts.by, *SHOWN]):
        if (value := best.value(name)) is None:
            continue
        row = [name, f"{value:.4f}", best.interval(name)]
        row += [f"{float(baselines[guess][name]):.4f}" for guess in guesses]
        if tested:
            of = tested[name]
            row += [f"{of['value']:.4f}", f"{of['lo']:.4f} – {of['hi']:.4f}"]
        rows.append(row)
    lines = [
        f"{report['images']} validation images; decisions by {report['threshold']}. Intervals: bootstrap over the "
        "images. baseline-blank gives no image a label; baseline-prior draws each label at its frequency in training.",
    ]
    if tested:
        lines.append(f"{facts.test['images']} test images, as the last `submission` decided them.")
    else:
        lines.append("Test: not known (no test labels, or `submission` has not decided with these cells).")
    return [*lines, "", *table(head, rows)]


def rule(facts: Facts, report: dict[str, Any]) -> list[str]:
    """The rule in words, and each label with its threshold and how well it is decided."""
    columns = ("label", "support", "threshold", "precision", "recall", "f1", "ap")

    def shown(value: Any) -> str:
        return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    entries = report["per_label"]
    rows = [[shown(entry.get(column)) for column in columns] for entry in entries[:_LABELS_SHOWN]]
    rest = f"{len(entries) - _LABELS_SHOWN} more labels are in `report.json`."
    made = f", ranked by {facts.selection.made_by}" if facts.selection.made_by else ""
    lines = [inline(f"{report['rule']['text']}{made}."), "", *table(columns, rows)]
    return [*lines, *(["", rest] if len(entries) > _LABELS_SHOWN else [])]


def limits(facts: Facts, best: CellFacts, report: dict[str, Any]) -> list[str]:
    """What a reader must know before the values are believed, and what nobody has stated."""
    selection, lines = facts.selection, []
    ranked = len([cell for cell in facts.trained if cell.value(facts.by) is not None])
    if ranked > 1 and selection.picked_by != "user":
        lines.append(
            f"Picked from {ranked} cells on these validation images, so its values there are optimistic."
        )
    lines.append("Intervals cover the draw of the images and not the luck of training.")
    if report["absent_labels"]:
        lines.append(
            f"No validation image has {', '.join(report['absent_labels'])}: nothing is known of these labels."
        )
    few = [f"{e['label']} {e['support']}" for e in report["per_label"] if 0 < e["support"] < FEW]
    if few:
        lines.append(
            f"Labels with fewer than {FEW} validation images, whose values are uncertain: {', '.join(few)}."
        )
    if facts.test.get("cells") == list(selection.cells) and facts.test.get("note"):
        lines.append(f"The test score may be too good: {facts.test['note'].strip('; ')}.")
    lines += [f"{selection.mixed_hardware}."] if selection.mixed_hardware else []
    if len(selection.codes) > 1:
        lines.append("The cells it was compared with come from different code.")
    if not selection.comparable:
        lines.append("The cells it was compared with were validated on different images.")
    lines += [selection.evaluate.mismatch] if selection.evaluate.mismatch else []
    gap = (
        "**Not stated: what it is for, what it must not be used for, and whom the pictures show.** Labelgrid does not "
        "know that. Write it here before you publish; an edited card is not overwritten."
    )
    return [*(f"- {inline(line)}" for line in lines), f"- {gap}"]


def licence(members: Sequence[CellFacts]) -> list[str]:
    """Of the weights that training began with, where it is known."""
    lines = []
    for weights, found in dict.fromkeys((weights_of(cell), licence_of_weights(cell)) for cell in members):
        if weights == "none":
            lines.append("- Weights: trained from random ones, so no other weights' licence applies.")
            continue
        known = "not known (torchvision names none, or the file is your own)"
        if "SWAG" in weights:
            known = _SWAG
        elif found:
            known = found + (f", which {limits_of(found)}" if limits_of(found) else "")
        lines.append(f"- Weights: began as {inline(weights)}, whose licence is {known}{_where(weights)}.")
    return [*lines, "- Images and labels: not known."]


def weights_of(cell: CellFacts) -> str:
    """Torchvision's name, timm's with `timm/`, `none`, or the name of a file without its folder."""
    weights = str(cell.settings.get("train.model.weights", "none"))
    return str(cell.settings.get("train.model.name")) if weights == "pretrained" else Path(weights).name


def licence_of_weights(cell: CellFacts) -> str:
    """As the cell recorded it, or as it is listed; "" where it is not known."""
    recorded = (cell.provenance.get("weights") or {}).get("licence")
    model, weights = (str(cell.settings.get(f"train.model.{key}", "")) for key in ("name", "weights"))
    return str(recorded or licence_of(model, weights))


def _where(weights: str) -> str:
    page = hub_page(weights)
    return f" ({page})" if page else ""


def loading(facts: Facts, members: Sequence[CellFacts]) -> list[str]:
    """Three lines of Python, and the files they read."""
    path = facts.experiment.path.resolve()
    place = f"{path.parent.name}/{path.name}"
    needed = ("manifest.json", "spec.yaml", "checkpoint_best.pt", "scores_val.npz")
    folders = ", ".join(f"`{cell.name}/`" for cell in members)
    return [
        "```python",
        "from pipeline.predictor import Predictor",
        "",
        f"model = Predictor.load({json.dumps(place)})  # what is selected, with the rule above",
        'print(model("photo.jpg").labels)',
        'model.export("model.onnx")  # or .pt2: a file that needs no Labelgrid',
        "```",
        "",
        f"It reads `selected.json`, and of {folders}: {', '.join(f'`{name}`' for name in needed)}.",
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(inline(entry) for entry in line)} |" for line in lines]


def inline(value: str) -> str:
    """Text that stays in its line and table cell and is no HTML: a label or file name may be anything."""
    flat = " ".join(value.split())
    return re.sub(r"([\\|`*\[\]])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;"))
