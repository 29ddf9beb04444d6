"""The head of the page in sentences: what was asked, who won, how sure that is, and what to try next. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.leaderboard_text import Recipe, Verdict, recipes
from pipeline.report.facts import CellFacts, Facts
from pipeline.spec import LOWER_IS_BETTER
from pipeline.spec.names import SEED, short

FEW = 20  # validation images of a label, below which its threshold and average precision say little
_LISTED = 4


def answer(facts: Facts) -> str:
    """Who is first, with what value, and whether that is sure."""
    found = recipes(facts.rows)
    if not found:
        return ""
    first, verdict = found[0], Verdict.of(facts.comparisons)
    parts = []
    if verdict is None or first.name != verdict.first:
        parts.append(f"{first.name} reaches {facts.by} {valued(first, facts.by)}")
    else:
        how = "wins with" if not verdict.tied else "is first with"
        parts.append(f"{first.name} {how} {facts.by} {valued(first, facts.by)}")
        if verdict.tied:
            parts.append(f"no significant difference from {_some(verdict.tied)}")
        if verdict.worse and verdict.covers_seeds:
            parts.append(f"{_some(verdict.worse)} {'is' if len(verdict.worse) == 1 else 'are'} worse")
        elif verdict.worse:
            parts.append(f"significantly ahead, on these images, of {_some(verdict.worse)}")
        if not verdict.covers_seeds:
            parts.append("trained with one seed each, so this covers the images and not the luck of training")
    if facts.best and facts.selection.picked_by == "ensemble":
        count, value = len(facts.selection.ensemble), _of_one(facts.best.row, facts.by)
        parts[:1] = [
            f"The mean scores of {count} cells reach {facts.by} {value}",
            f"of single cells {parts[0]}",
        ]
    if facts.selection.splits > 1:
        parts.append(f"means over {facts.selection.splits} splits, whose differences are not tested")
    prior = next((row for row in facts.baselines if row["cell"] == "baseline-prior"), None)
    if prior and prior.get(facts.by):
        parts.append(f"guessing labels by their frequency gives {float(prior[facts.by]):.3f}")
    return "; ".join(parts) + "."


def valued(recipe: Recipe, metric: str) -> str:
    """`0.723 [0.696, 0.749]`, or `0.723 ± 0.004 (3 runs)` over seeds and splits."""
    values = recipe.values(metric)
    if len(values) > 1:
        return f"{recipe.value(metric):.3f} ± {statistics.stdev(values):.3f} ({len(values)} runs)"
    return _of_one(recipe.best, metric)


def _of_one(row: Mapping[str, str], metric: str) -> str:
    low, high = row.get(f"{metric}_lo"), row.get(f"{metric}_hi")
    interval = f" [{float(low):.3f}, {float(high):.3f}]" if low and high else ""
    return f"{float(row[metric]):.3f}{interval}"


def what_next(facts: Facts) -> list[str]:
    """What the results suggest to do, the most useful first."""
    found = recipes(facts.rows)
    if not found:
        return []
    best = next((cell for cell in facts.cells if cell.name == found[0].best["cell"]), None)
    lines = [*(_of_curves(best, facts) if best else ()), *_edges(facts, found), *_sureness(facts, found)]
    lines += [facts.selection.evaluate.mismatch] if facts.selection.evaluate.mismatch else []
    few = sorted((count, label) for label, count in facts.validation_counts().items() if 0 < count < FEW)
    if few:
        named = _some([f"{label} {count}" for count, label in few])
        lines.append(
            f"Labels with fewer than {FEW} validation images ({named}): their thresholds are uncertain, and the "
            "intervals of mean average precision cover less than the 95 % they claim."
        )
    return lines


def _of_curves(best: CellFacts, facts: Facts) -> Iterator[str]:
    epochs, planned = best.best_epoch(facts.curve_by), best.settings.get("train.epochs")
    if not epochs or not best.epochs:
        return
    last = int(best.epochs[-1]["epoch"])
    if epochs[0] == last == planned and last > 1:
        yield f"{best.name} still improves in its last epoch ({last}): train longer (train.epochs)."
    losses = best.curve("validation/loss")
    lowest, low = min(losses, key=lambda point: point[1])
    if last - lowest >= 2 and losses[-1][1] > 1.02 * low and best.falls("train/loss", lowest):
        yield (
            f"{best.name} over-fits since epoch {int(lowest)}: its validation loss rises while its training loss "
            "falls. Try more augmentation, weight decay, or more images."
        )


def _edges(facts: Facts, found: Sequence[Recipe]) -> Iterator[str]:
    optimizer = "train.optimizer.name"  # a rate of another one says nothing of this one's
    best = next((cell for cell in facts.cells if cell.name == found[0].best["cell"]), None)
    for key, groups in facts.axes.items():
        values = {}
        for text, cells in groups.items():
            alike = [c for c in cells if best and c.settings.get(optimizer) == best.settings.get(optimizer)]
            scores = [value for cell in alike if (value := cell.value(facts.by)) is not None]
            if scores:
                values[text] = statistics.fmean(scores)
        try:
            numbers = {float(text): score for text, score in values.items()}
        except ValueError:
            continue
        if len(numbers) < 2 or short(SEED) == key:
            continue
        pick = min if facts.by in LOWER_IS_BETTER else max
        top = pick(numbers, key=lambda number: numbers[number])
        if top in (min(numbers), max(numbers)):
            side, word = ("smallest", "smaller") if top == min(numbers) else ("largest", "larger")
            yield f"The best {key}, {top:g}, is the {side} that was tried: try {word} ones."


def _sureness(facts: Facts, found: Sequence[Recipe]) -> Iterator[str]:
    verdict = Verdict.of(facts.comparisons)
    if len(found) > 1 and all(len(recipe.rows) == 1 for recipe in found):
        yield "Each recipe was trained once: add grid.seeds: [0, 1, 2] to see the luck of training."
    elif verdict and verdict.tied and verdict.covers_seeds:
        yield "More seeds, or more validation images, may tell the first ones apart."


def _some(names: Sequence[str]) -> str:
    shown = list(names[:_LISTED])
    if len(names) > _LISTED:
        return ", ".join(shown) + f" and {len(names) - _LISTED} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
