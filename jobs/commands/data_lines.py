"""What a data set was understood to be, on the screen: the same lines in wrangle, grid, plan and inspect."""

from __future__ import annotations

import textwrap

from jobs.planning.plan import Plan, PlannedData
from pipeline.data.layout import REPORT
from pipeline.data.looks import state_of
from pipeline.data.remembered import remembered
from pipeline.data.summary import data_summary
from pipeline.storage.files import display_path


def all_data(plan: Plan) -> list[PlannedData]:
    """Every packed set that the spec needs, those of `data.test` last, each once."""
    own = {data.packed: data for data in plan.tests.values() if data.split is None}
    return [*plan.datasets, *own.values()]


def data_lines(data: PlannedData) -> str:
    """A head line, and in at most ten lines what is known of the set.

    A set that is not packed yet is read as far as that goes without decoding; raises DataError where
    that shows a mistake.
    """
    what = "data.test" if data.split is None else "data"
    head = f"{what} {display_path(data.packed)}: {data.reason or 'packed'}"
    if data.reason in (None, "new split"):
        files = [data.packed / REPORT, *([data.split] if data.split else [])]
        made_of = [[str(file), state_of(file)] for file in files]
        text = remembered(data.cache, "summary", made_of, lambda: data_summary(data.packed, data.split))
    else:
        asked = data.data.model_dump(mode="json", by_alias=True)
        text = remembered(data.cache, "preview", [what, data.made_of, asked], lambda: _preview(data))
    return f"{head}\n{textwrap.indent(text, '  ')}".rstrip()


def _preview(data: PlannedData) -> str:
    from pipeline.data.wrangle_report import preview  # numpy takes a while to import

    return preview(data.data, test=data.split is None)
