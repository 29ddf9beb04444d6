"""Which stages a spec needs, which of them are missing and why. Pure planning: no torch, nothing started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.planning.missing_files import naming_the_key, weights_digest
from jobs.planning.own_code import OwnCodes
from pipeline.data.history import changes, known_identity, remember_identity, seen_key, seen_value
from pipeline.data.layout import is_complete, origin, packed_path, split_identity, split_path
from pipeline.data.summary import split_sizes
from pipeline.errors import PipelineError, SpecError
from pipeline.evaluation.selection import EvaluationInputs
from pipeline.own.source import OwnFiles
from pipeline.spec import ColumnSplit, DataSpec, ModelSpec
from pipeline.spec.grid import Cell, expand_grid
from pipeline.spec.identity import cell_identity, digest
from pipeline.spec.reading import Loaded, read_spec
from pipeline.storage.files import display_path, read_json_or_empty, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.typed import option, typed


@dataclass(frozen=True)
class PlannedData:
    """One packed set with its split, and whether both are there."""

    data: DataSpec
    packed: Path
    packed_digest: str
    split: Path | None  # None for a test set
    note: str | None = None  # that its source is gone
    assumed: str | None = None  # of its source, of which not every file was looked at
    made_of: str = ""  # digest of the settings and the state of its sources

    @property
    def reason(self) -> str | None:
        """None when complete, else why it must be wrangled."""
        if not is_complete(self.packed, self.packed_digest):
            return "damaged" if self.packed.exists() else "new"
        if self.split is not None and not self.split.exists():
            return "new split"
        return None

    @property
    def cache(self) -> Path:
        """For what is remembered of it."""
        return self.packed.parents[1] / "digests"

    @property
    def split_file(self) -> Path:
        """Of a set to train on, which always has one."""
        assert self.split is not None
        return self.split

    @property
    def images(self) -> dict[str, int]:
        """How many images each part of the split has; {} where it is not made yet, or cannot be read."""
        return split_sizes(self.split_file, self.cache)

    @cached_property
    def digest(self) -> str:
        """Of the pixels, labels and split a cell sees."""
        return digest([self.packed_digest, split_identity(self.data)])


@dataclass(frozen=True)
class PlannedCell:
    """One cell: its folder and identity, its data, and why it must run (None: it is complete)."""

    cell: Cell
    run: RunDir
    identity: str
    data: PlannedData
    reason: str | None
    code: OwnFiles | None = None  # the user's own
    weights_digest: str = ""  # of its file of weights

    @property
    def held(self) -> str | None:
        """Why it is not to run again by itself though it is not complete: it would diverge again."""
        if self.reason is None or not self.reason.startswith("diverged: "):
            return None
        return f"{self.reason}; `{typed('retry', run=self.run.name)}` trains it anew"


@dataclass(frozen=True)
class Plan:
    """Everything a spec asks for."""

    loaded: Loaded
    cells: list[PlannedCell]
    every_file: bool = True  # of the sources was looked at
    _tests: dict[DataSpec, PlannedData | None] = field(default_factory=dict)  # looked up once

    @property
    def root(self) -> Path:
        """The project's root."""
        return self.loaded.root

    @property
    def experiment(self) -> ExperimentDir:
        """`experiments/<name>/`."""
        return experiment_dir(self.loaded)

    @property
    def missing(self) -> list[PlannedCell]:
        """Cells that must run."""
        return [cell for cell in self.cells if cell.reason is not None and cell.held is None]

    @cached_property
    def datasets(self) -> list[PlannedData]:
        """The distinct packed sets with their splits, in the order of the cells."""
        return list({cell.data.split: cell.data for cell in self.cells}.values())

    def test_of(self, data: DataSpec) -> PlannedData | None:
        """The images to predict under a cell of this data: packed as its own, or its split's test rows.

        None where there are neither. Never those of another cell: with a grid over splits, one cell's
        test images are another's training images.
        """
        if data not in self._tests:
            own = data.test is not None
            has_test = own or getattr(data.split, "test", None)
            with naming_the_key(self.loaded, data):
                planned = self._planned(data, own=own) if has_test else None
            if planned is not None and not own and isinstance(data.split, ColumnSplit):
                planned = planned if _has_test_images(planned) else None
            self._tests[data] = planned
        return self._tests[data]

    def _planned(self, data: DataSpec, *, own: bool) -> PlannedData:
        return planned_data(data, self.root, test=own, every_file=self.every_file)

    @property
    def tests(self) -> dict[str, PlannedData]:
        """The test images of each cell, by folder name."""
        found = {cell.run.name: self.test_of(cell.cell.spec.data) for cell in self.cells}
        return {name: data for name, data in found.items() if data is not None}

    @cached_property
    def tests_of_others(self) -> dict[str, PlannedData]:
        """The test images of the complete cells that are not of this grid, which can be selected too."""
        found = {}
        for name, _ in self.others():
            with contextlib.suppress(PipelineError, OSError):  # its spec, or its data, is gone
                spec = read_spec(self.experiment.path / name / "spec.yaml", root=self.root).spec
                if (test := self.test_of(spec.data)) is not None:
                    found[name] = test
        return found

    @property
    def gone(self) -> list[str]:
        """That sources are gone whose packed sets are used; of test sets those that were looked up."""
        return list(dict.fromkeys(data.note for data in self._looked_up if data.note is not None))

    @property
    def assumed(self) -> list[str]:
        """What is assumed of sources of which not every file was looked at; of test sets those that were looked up."""
        return list(dict.fromkeys(data.assumed for data in self._looked_up if data.assumed is not None))

    @property
    def _looked_up(self) -> list[PlannedData]:
        return [*self.datasets, *filter(None, self._tests.values())]

    @property
    def changed(self) -> list[str]:
        """What has changed in the data of missing cells since this experiment's cells were last run."""
        seen = read_json_or_empty(self.experiment.data)
        return list(dict.fromkeys(_changes(self, seen))) if seen else []

    def remember_data(self) -> None:
        """Keep which data the cells are run on, to say what has changed the next time."""
        known = read_json_or_empty(self.experiment.data)
        now = {seen_key(data.data): seen_value(data.data, data.packed_digest) for data in self.datasets}
        if known | now != known:
            with contextlib.suppress(PipelineError):  # only a note would be missing
                write_json(self.experiment.data, known | now)

    def named_weights(self) -> Iterator[ModelSpec]:
        """The networks whose weights are fetched by name, each once whatever is trained of it."""
        models = (cell.cell.spec.train.model for cell in self.missing)
        yield from {(m.name, m.weights): m for m in models if m.named_weights}.values()

    @property
    def evaluation(self) -> EvaluationInputs:
        """What the leaderboard is made of."""
        return EvaluationInputs(
            self.experiment,
            cells=tuple((cell.run.name, cell.identity) for cell in self.cells),
            others=tuple(self.others()),
            evaluate=self.loaded.spec.evaluate,
            submission=self.loaded.spec.submission,
            data_digests=tuple(data.digest for data in self.datasets),
            made_by=self.loaded.command,
        )

    def others(self) -> Iterator[tuple[str, str]]:
        """(folder name, identity) of the complete cells of this experiment that are not of this grid."""
        mine = {cell.run.name for cell in self.cells}
        for name in sorted(name for names in self.experiment.folders().values() for name in names):
            run = RunDir(self.experiment.path / name)
            if name not in mine and run.manifest.exists():
                identity = run.read_manifest().get("identity", "")
                if run.why_not_done(identity) is None:
                    yield name, identity


def data_root(root: Path) -> Path:
    """Packed sets, downloads and weights; never committed."""
    return root / "data"


def weights_folder(root: Path) -> Path:
    """Where downloaded weights lie."""
    return data_root(root) / "weights"


def experiment_dir(loaded: Loaded) -> ExperimentDir:
    """Where the results of this spec lie."""
    return ExperimentDir(loaded.root / "experiments" / loaded.spec.name)


def find_cell(plan: Plan, prefix: str) -> RunDir:
    """The cell that `prefix` names: of the plan, begun or not, else one of an earlier spec that has a folder."""
    names = [cell.run.name for cell in plan.cells]
    found = [prefix] if prefix in names else [name for name in names if name.startswith(prefix)]
    if len(found) == 1:
        return RunDir(plan.experiment.path / found[0])
    if not found:
        return plan.experiment.find(prefix)
    raise SpecError(f"{option('run', prefix)}: {len(found)} cells start with that: {', '.join(found)}")


def make_plan(loaded: Loaded, *, every_file: bool = True) -> Plan:
    """Expand the grid and find out what is there; raises SpecError or DataError.

    Whoever only shows it does without a look at every file of a large folder (`packed_identity`).
    """
    experiment = experiment_dir(loaded)
    folders, submitted = experiment.folders(), experiment.submitted()
    datasets: dict[DataSpec, PlannedData] = {}
    weights: dict[str, str] = {}
    planned, own = [], OwnCodes(loaded)
    for cell in expand_grid(loaded):
        if cell.spec.data not in datasets:
            with naming_the_key(loaded, cell.spec.data, cell.settings):
                datasets[cell.spec.data] = planned_data(cell.spec.data, loaded.root, every_file=every_file)
        data = datasets[cell.spec.data]
        path = cell.spec.train.model.weights_file
        if path is not None and path not in weights:
            place = loaded.place("train.model.weights", cell.settings)
            weights[path] = weights_digest(Path(path), place)
        code = own.of(cell)
        code_digest = code.digest if code else None
        identity = cell_identity(cell.spec.train, data.digest, weights.get(path or ""), code_digest)
        run = experiment.cell(cell.slug, identity, folders, submitted)
        reason, of_weights = run.why_not_done(identity), weights.get(path or "", "")
        planned.append(PlannedCell(cell, run, identity, data, reason, code, of_weights))
    return Plan(loaded, planned, every_file)


def planned_data(data: DataSpec, root: Path, *, test: bool = False, every_file: bool = True) -> PlannedData:
    """The packed set that a spec's data asks for, or its test set; raises DataError where its source is wrong."""
    known = known_identity(data, data_root(root), test=test, every_file=every_file)
    packed = packed_path(data_root(root), known.identity)
    if known.gone is None and is_complete(packed, known.identity.digest):
        remember_identity(data, data_root(root), known.identity, test=test)
    split = None if test else split_path(packed, data)
    look = known.identity.look
    assumed = None if look is None else look.note(Path(origin(data, test=test).source))
    made_of = known.identity.made_of
    return PlannedData(data, packed, known.identity.digest, split, known.note(packed), assumed, made_of)


def _has_test_images(data: PlannedData) -> bool:
    """Whether a column divides some images off as test images, which only the finished split tells."""
    return not data.images or "test" in data.images


def _changes(plan: Plan, seen: Mapping[str, Any]) -> Iterator[str]:
    for data in plan.datasets:
        missing = sum(cell.data.split == data.split for cell in plan.missing)
        before, now = seen.get(seen_key(data.data)), seen_value(data.data, data.packed_digest)
        found = changes(data.data, data_root(plan.root), before, now) if missing else []
        if found:
            yield "\n  ".join(
                [
                    f"{display_path(Path(data.data.source))}: its data has changed since this grid last ran; "
                    f"{missing} of its cells train anew, those of the earlier data stay in their folders",
                    *found,
                ]
            )
