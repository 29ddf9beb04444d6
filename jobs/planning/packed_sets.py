"""The packed sets of a project and who needs each: specs, cells, and what is queued or runs. Torch-free.

Whatever cannot be known counts as needed: of a spec that cannot be planned, every set of its sources stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from jobs.planning.plan import data_root, planned_data
from pipeline.data.layout import read_dataset
from pipeline.errors import PipelineError
from pipeline.evaluation.selection import Selection
from pipeline.evaluation.submission import predicted_set
from pipeline.spec import DataSpec
from pipeline.spec.grid import expand_grid
from pipeline.spec.reading import Loaded, read_spec
from pipeline.storage.files import read_json_or_empty
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.ownership import owner
from pipeline.storage.run_dir import ExperimentDir, RunDir

_SOURCE = re.compile(r"""\bsource:\s*(?:"([^"]*)"|'([^']*)'|([^\n,{}#]*))""")
_INCLUDED = re.compile(r"^data:\s*([^\s{#]+)", re.MULTILINE)
_DATA = re.compile(r"^data:.*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL)


@dataclass
class PackedFolder:
    """One packed set on disk, and who needs it."""

    path: Path
    needed_by: dict[str, None] = field(default_factory=dict)  # in the order they were found

    @cached_property
    def bytes(self) -> int:
        """What it takes on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    @cached_property
    def digest(self) -> str:
        """Of its content; "" where `dataset.json` cannot be read."""
        return str((read_dataset(self.path) or {}).get("digest", ""))

    def is_of(self, sources: Collection[str]) -> bool:
        """Whether it may have been packed from a source of one of these file names."""
        dataset = read_dataset(self.path)
        return dataset is None or Path(dataset["source"]).name in sources


def packed_folders(root: Path) -> list[PackedFolder]:
    """The packed sets of a project; what is half-written has a hidden name and is none."""
    folder = data_root(root) / "packed"
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [PackedFolder(path) for path in paths if path.is_dir() and not path.name.startswith(".")]


Active = Callable[[ExperimentDir, Collection[str]], Collection[str]]


def find_needs(loaded: Loaded, active: Active) -> list[PackedFolder]:
    """The packed sets of the spec's project, each with everybody who needs it.

    `active` says which of some Slurm jobs of an experiment may still be queued or running.
    """
    needs = _Needs(loaded.root)
    needs.of_spec("the given spec", loaded)
    for path in sorted((loaded.root / "experiments").glob("*.yaml")):
        who = f"experiments/{path.name}"
        try:
            needs.of_spec(who, read_spec(path, root=loaded.root))
        except PipelineError:
            needs.of_unreadable(who, path)
    for folder in sorted((loaded.root / "experiments").glob("*/")):
        needs.of_experiment(ExperimentDir(folder))
        needs.of_jobs(ExperimentDir(folder), active)
    return needs.folders


class _Needs:
    def __init__(self, root: Path) -> None:
        self.root, self.folders = root, packed_folders(root)
        self._known: dict[DataSpec, set[str]] = {}
        self._cells: dict[str, set[str]] = {}  # of the data sections of cells, which are mostly alike

    def add(self, who: str, names: Collection[str | None]) -> None:
        """Somebody needs the sets of these names."""
        for folder in self.folders:
            if folder.path.name in names:
                folder.needed_by[who] = None

    def _packed_from(self, sources: Collection[str]) -> set[str]:
        return {folder.path.name for folder in self.folders if folder.is_of(sources)}

    def of_spec(self, who: str, loaded: Loaded) -> None:
        """The training and test sets of all cells; raises SpecError."""
        self.add(who, {name for cell in expand_grid(loaded) for name in self._of_data(cell.spec.data)})

    def _of_data(self, data: DataSpec) -> set[str]:
        if data not in self._known:
            names = set()
            for test in (False, True) if data.test else (False,):
                try:
                    names.add(planned_data(data, self.root, test=test).packed.name)
                except PipelineError:  # its source is gone, or damaged
                    names |= self._packed_from({Path(part.source).name for part in (data, data.test) if part})
            self._known[data] = names
        return self._known[data]

    def of_unreadable(self, who: str, path: Path) -> None:
        """Every set that was packed from what looks like a source there; all sets where nothing does."""
        try:
            text = path.read_text(encoding="utf-8")
            text += "".join(
                (self.root / name).read_text(encoding="utf-8") for name in _INCLUDED.findall(text)
            )
        except (OSError, ValueError):
            text = ""
        found = ["".join(match).strip() for match in _SOURCE.findall(text)]
        if not found or any(set(source) & set("$&*") for source in found):
            names = {folder.path.name for folder in self.folders}  # it may be any of them
        else:
            names = self._packed_from({Path(source).name for source in found})
        self.add(f"{who} (which cannot be read)", names)

    def of_experiment(self, experiment: ExperimentDir) -> None:
        """What its cells were trained on, are to predict and have predicted, and what its selection names."""
        for path in sorted(experiment.path.glob("*/")):
            run = RunDir(path)
            if run.spec.exists() or run.manifest.exists():
                who = f"experiments/{experiment.path.name}/{run.name}"
                digest = read_json_or_empty(run.provenance).get("data")
                trained_on = {folder.path.name for folder in self.folders if folder.digest == digest}
                self.add(who, {*trained_on, predicted_set(run), *self._of_cell(who, run)})
        if experiment.selected.exists():
            packed = Selection.read(experiment).packed
            self.add(f"experiments/{experiment.path.name}", {packed.name if packed else None})

    def _of_cell(self, who: str, run: RunDir) -> set[str]:
        try:
            text = run.spec.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return set()
        section = "".join(_DATA.findall(text))
        if section not in self._cells:
            try:
                self._cells[section] = self._of_data(read_spec(run.spec, root=self.root).spec.data)
            except PipelineError:
                self.of_unreadable(who, run.spec)
                return set()
        return self._cells[section]

    def of_jobs(self, experiment: ExperimentDir, active: Active) -> None:
        """What its queued and running jobs name, and its cells on this machine that wait for their turn."""
        who = f"a job of experiments/{experiment.path.name}"
        events = read_jsonl(experiment.ledger) if experiment.ledger.exists() else []
        files = {path.name.removesuffix("_submitted.pkl"): path for path in _unfinished(experiment)}
        jobs = set(active(experiment, files)) if files else set()
        for job in sorted(jobs):
            body = files[job].read_bytes()  # paths are plain text in a pickle
            names = {folder.path.name for folder in self.folders if folder.path.name.encode() in body}
            self.add(f"{who} ({job})", names)
        named = {
            Path(name).name for e in events if jobs & {*e.get("jobs", ())} for name in e.get("packed", ())
        }
        if any(owner(path) for path in experiment.path.glob("*/")):
            named |= {
                str(event["packed"]) for event in events if event["event"] == "queued" and "packed" in event
            }
        self.add(who, named)


def _unfinished(experiment: ExperimentDir) -> Iterator[Path]:
    """What was handed to Slurm and has left no result."""
    done = {path.name.rsplit("_", 2)[0] for path in experiment.slurm.glob("*_result.pkl")}
    for path in experiment.slurm.glob("*_submitted.pkl"):
        if path.name.removesuffix("_submitted.pkl") not in done:
            yield path
