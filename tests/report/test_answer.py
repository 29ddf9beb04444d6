"""The head of the page in sentences: who won, how sure that is, and what to do next."""

from dataclasses import replace

import pytest

from pipeline.evaluation.leaderboard_text import Recipe, Verdict, format_comparisons
from pipeline.evaluation.selection import Selection
from pipeline.report.answer import answer, what_next
from pipeline.report.facts import CellFacts, Facts
from pipeline.report.page import Table, gallery, top
from pipeline.report.spending import Spending
from pipeline.spec import EvaluateSpec
from pipeline.spec.question import question
from pipeline.storage.run_dir import ExperimentDir


def row(cell, value, recipe=None, **settings):
    more = {f"set/{key}": str(v) for key, v in settings.items()}
    ends = {"f1_micro_lo": str(value - 0.02), "f1_micro_hi": str(value + 0.02)}
    return {"cell": cell, "state": "done", "recipe": recipe or cell, "f1_micro": str(value), **ends, **more}


def pair(a, b, verdict, covers="images"):
    return {"a": a, "b": b, "metric": "f1_micro", "verdict": verdict, "covers": covers}


def facts_of(tmp_path, rows, comparisons=(), epochs=(), axes=None, evaluate=None, **settings):
    cells = [CellFacts(r["cell"], "done", "", r, settings, list(epochs), {}, Spending()) for r in rows]
    by_name = {cell.name: cell for cell in cells}
    groups = {k: {v: [by_name[n] for n in names] for v, names in g.items()} for k, g in (axes or {}).items()}
    selection = Selection(evaluate=evaluate or EvaluateSpec(threshold="per_label", select_by="f1_micro"))
    baselines = [{"cell": "baseline-prior", "f1_micro": "0.21"}]
    return Facts(
        ExperimentDir(tmp_path), selection, cells, baselines, [], list(comparisons), "f1_micro", "map_macro",
        cells[0], groups, rows, {},
    )  # fmt: skip


def test_one_seed_is_said_to_cover_the_images_only(tmp_path):
    rows = [row("adamw", 0.723), row("adam", 0.72), row("sgd", 0.5)]
    pairs = [
        pair("adamw", "adam", "no significant difference"),
        pair("adamw", "sgd", "a leads on these images"),
        pair("adam", "sgd", "a leads on these images"),
    ]
    said = answer(facts_of(tmp_path, rows, pairs))
    assert said == (
        "adamw is first with f1_micro 0.723 [0.703, 0.743]; no significant difference from adam; significantly "
        "ahead, on these images, of sgd; trained with one seed each, so this covers the images and not the luck of "
        "training; guessing labels by their frequency gives 0.210."
    )
    assert "better" not in said + format_comparisons(pairs)
    assert "add grid.seeds" in " ".join(what_next(facts_of(tmp_path, rows, pairs)))


def test_an_ensemble_that_is_submitted_comes_first(tmp_path):
    """Its value is what the reader gets; the best single cell is beside it."""
    rows = [row("a", 0.78), row("b", 0.77)]
    facts = facts_of(tmp_path, rows)
    mean = CellFacts("ensemble", "ensemble", "", row("ensemble", 0.8), {}, [], {}, Spending())
    selection = facts.selection.model_copy(update={"picked_by": "ensemble", "ensemble": ("a", "b")})
    assert answer(replace(facts, best=mean, selection=selection)) == (
        "The mean scores of 2 cells reach f1_micro 0.800 [0.780, 0.820]; of single cells a reaches f1_micro 0.780 "
        "[0.760, 0.800]; guessing labels by their frequency gives 0.210."
    )


def test_with_seeds_the_recipe_wins_with_mean_and_spread(tmp_path):
    rows = [row("adamw-1", 0.73, "adamw"), row("adamw-0", 0.71, "adamw"), row("sgd-0", 0.5, "sgd")]
    said = answer(facts_of(tmp_path, rows, [pair("adamw", "sgd", "a is better", "images and seeds")]))
    assert said.startswith("adamw wins with f1_micro 0.720 ± 0.014 (2 runs); sgd is worse; ")


def epochs_of(losses, best, train=None):
    return [
        {
            "epoch": n, "step": n, "validation/loss": loss, "train/loss": train[n - 1] if train else 1 / n,
            "validation/map_macro": 0.5 - abs(n - best) / 100, "best_epoch": best, "best_value": 0.5,
        }
        for n, loss in enumerate(losses, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": epochs_of([3, 2, 1], 3)}, "a still improves in its last epoch (3): train longer"),
        ({"epochs": epochs_of([3, 1, 2, 3], 2)}, "a over-fits since epoch 2"),
        (
            {"axes": {"lr": {"0.001": ["b"], "0.01": ["a"]}}},
            "The best lr, 0.01, is the largest that was tried: try larger ones.",
        ),
        (
            {"evaluate": EvaluateSpec(threshold="per_label", tune_for="f1_macro", select_by="f1_micro")},
            "Decisions are tuned for f1_macro and cells ranked by f1_micro",
        ),
        ({"evaluate": EvaluateSpec(threshold=0.5)}, "ranked by f1_micro at the fixed threshold 0.5"),
    ],
)
def test_what_next_names_what_the_results_suggest(tmp_path, changes, said):
    settings = {"train.epochs": 3, "train.monitor": "map_macro"}
    facts = facts_of(tmp_path, [row("a", 0.7), row("b", 0.6)], **changes, **settings)
    assert any(said in line for line in what_next(facts)), what_next(facts)


def test_a_rate_of_another_optimizer_is_no_edge(tmp_path):
    rows = [row("a", 0.7), row("b", 0.6)]
    facts = facts_of(tmp_path, rows, axes={"lr": {"0.001": ["b"], "0.1": ["a"]}})
    assert any("largest" in line for line in what_next(facts))
    other = replace(facts.cells[1], settings={"train.optimizer.name": "adam"})
    axes = {"lr": {"0.001": [other], "0.1": facts.cells[:1]}}
    told = what_next(replace(facts, cells=[facts.cells[0], other], axes=axes))
    assert not any("largest" in line for line in told)


def test_what_does_not_hold_is_not_advised(tmp_path):
    axes = {"lr": {"0.001": ["b"], "0.01": ["a"], "0.1": ["c"]}}
    rows = [row("a", 0.7), row("b", 0.6), row("c", 0.5)]
    settings = {"train.epochs": 3, "train.monitor": "map_macro"}
    (only,) = what_next(facts_of(tmp_path, rows, axes=axes, epochs=epochs_of([3, 1, 1.01], 2), **settings))
    assert "grid.seeds" in only


def test_the_question_is_the_spec_s_header(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# Question: which one,\n#           and why?\n# Command:  make grid\ndata: {}\n")
    assert question(path) == "Which one, and why?"
    path.write_text("data: {}\n")
    assert question(path) == ""
    assert question(tmp_path / "none.yaml") == ""


def test_whatever_a_label_or_a_file_is_called_it_is_text():
    evil = "<img src=x onerror=alert(1)>&\"'"
    picture = {"jpeg": "", "name": evil, "loss": "1", "lines": [("ok", evil)]}
    html = (
        Table([evil], [[evil]], anchors={evil}).html()
        + gallery(evil, [picture])
        + top(evil, evil, evil, [evil])
    )
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x") == 11


def test_ties_and_the_worse_are_told_apart():
    both = "images and seeds"
    pairs = [
        pair("a", "b", "no significant difference", both),
        pair("a", "c", "a is better", both),
        pair("b", "c", "a is better", both),
    ]
    assert Verdict.of(pairs) == Verdict("a", ("b",), ("c",), covers_seeds=True)
    text = format_comparisons(pairs)
    assert "no significant difference between: a, b" in text
    assert "a is significantly better than: c" in text
    assert Recipe("r", [row("x", 0.5), row("y", 0.7)]).value("f1_micro") == pytest.approx(0.6)
