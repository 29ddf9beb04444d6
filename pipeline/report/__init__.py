"""`report.html`: the results of an experiment on one page that can be copied anywhere. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.facts import read_facts
from pipeline.report.model_card import write_card
from pipeline.report.page import page
from pipeline.report.sections import Report
from pipeline.storage.files import atomic_write
from pipeline.storage.run_dir import ExperimentDir
from pipeline.storage.tables import write_table


def write_report(experiment: ExperimentDir, planned: Sequence[str] = (), *, files: bool = False) -> None:
    """Write the page and the model card from the results so far; `planned` names all cells of the grid.

    With `files`, also every figure as PDF and PNG and every table as CSV under `figures/`.
    """
    facts = read_facts(experiment, planned)
    report = Report(facts)
    html = page(experiment.path.name, report.head(), report.sections())
    with atomic_write(experiment.report, "w") as file:
        file.write(html)
    write_card(facts)
    if files:
        report.plots.save(experiment.figures)
        for name, table in report.tables.items():
            rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            write_table(experiment.figures / f"{name}.csv", table.columns, rows)
