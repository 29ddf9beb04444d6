"""The `grid:` section; `pipeline/spec/grid.py` expands it to cells."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.spec.fields import Section, Seed


class GridSpec(Section):
    """The variations to compare: axes x cells x seeds, without what `exclude` names."""

    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted keys of `data` or `train`, each with its list of values: `{train.optimizer.lr: [1e-4, 1e-3]}`.

    Every combination of the values is a cell.
    """
    cells: tuple[dict[str, Any], ...] = ()
    """Settings that belong together, one mapping of dotted keys a cell. Use it where axes give too many."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations to leave out: a cell is left out where every key of one mapping has its value."""
    seeds: tuple[Seed, ...] = ()
    """Values of `train.seed`; each cell is trained once with each. Use three or more to see the spread."""
    share_process: Literal["auto"] | bool = "auto"
    """Trains cells with equal data, augmentation, batch size and seed in one process, over the same batches.

    Results are the same as alone. `auto` does so on this machine, where cells would wait or share few
    cores. `true` does so on a cluster too, `false` never.
    """
