"""The only owner of file names under `experiments/<name>/`, and of what makes a cell complete. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, SpecError
from pipeline.storage.files import read_json, read_json_or_empty, sha256_file, write_json
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.ownership import check_owned, owned
from pipeline.storage.typed import option, typed

MANIFEST_VERSION = 1
HASH_LENGTH = 8


def rank_log(log: Path, rank: int) -> Path:
    """Where a process of several writes, beside the log of the first one."""
    return log.with_name(f"{log.stem}-rank{rank}{log.suffix}") if rank else log


class _File:
    """A file or folder that lies in another folder under this name."""

    def __init__(self, name: str, doc: str) -> None:
        self.name, self.__doc__ = name, doc

    def __get__(self, folder: ExperimentDir | RunDir, _: object) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class ExperimentDir:
    """`experiments/<spec name>/`: one folder per cell and the files about all of them."""

    path: Path

    ledger = _File(
        "ledger.jsonl", "What was started and how it ended, one JSON object a line, only ever appended to."
    )
    leaderboard = _File("leaderboard.csv", "A row per cell and baseline.")
    seeds = _File("leaderboard_seeds.csv", "Cells that were trained with several seeds: mean and spread.")
    comparisons = _File("comparisons.csv", "The best cells, two by two: which is significantly better.")
    baselines = _File("baselines.json", "The metrics of the baselines: measured once, read again.")
    report = _File("report.html", "The page to look at.")
    figures = _File("figures", "The report's figures as PDF and PNG, its tables as CSV.")
    selected = _File("selected.json", "The cell the submission is made of, and why.")
    submission = _File("submission.csv", "The decisions on the test images.")
    test_metrics = _File("test_metrics.json", "Metrics of the submission where test labels are known.")
    data = _File("data.json", "Which data the cells were last run on, to say what has changed since.")
    logs = _File("logs", "Logs of the stages other than training.")
    slurm = _File("slurm", "submitit's own files.")
    code = _File("code", "Snapshots of the code that ran.")
    meeting = _File("meeting.json", "Where the processes find each other that predict together.")

    def folders(self) -> dict[str, list[str]]:
        """The names of what is there by the hash they end in: one listing for a whole plan."""
        found: dict[str, list[str]] = {}
        with suppress(FileNotFoundError):
            for path in sorted(self.path.iterdir()):
                found.setdefault(path.name.rpartition("-")[2], []).append(path.name)
        return found

    def submitted(self) -> dict[str, str]:
        """Identity -> the name under which a job of the cell was last submitted, or was to be."""
        events = read_jsonl(self.ledger)
        lines = [line for event in events for line in (event, *event.get("lines", ()))]
        return {
            str(line["identity"]): str(line["cell"])
            for line in lines
            if "identity" in line and "cell" in line
        }

    def cell(
        self,
        slug: str,
        identity: str,
        folders: Mapping[str, Sequence[str]],
        submitted: Mapping[str, str] | None = None,
    ) -> RunDir:
        """The folder of the cell with this identity: one of `folders` that is there, one of a job, else a new name."""
        suffix = identity[:HASH_LENGTH]
        name = f"{slug}-{suffix}"
        others = folders.get(suffix, ())
        for other in others if name not in others else ():
            if RunDir(self.path / other).manifest_state(identity) != "new":
                return RunDir(self.path / other)
        return RunDir(self.path / (name if name in others else (submitted or {}).get(identity, name)))

    def find(self, prefix: str) -> RunDir:
        """The cell folder named `prefix`, or the only one that starts with it."""
        folders = sorted(p.name for p in self.path.glob("*") if (p / "manifest.json").exists())
        matches = [prefix] if prefix in folders else [name for name in folders if name.startswith(prefix)]
        if len(matches) != 1:
            problem = f"{len(matches)} cells start" if matches else "no cell starts"
            known = ", ".join(matches or folders) or "none yet"
            raise SpecError(f"{option('run', prefix)}: {problem} with that in {self.path}; cells: {known}")
        return RunDir(self.path / matches[0])


@dataclass(frozen=True)
class RunDir:
    """One cell's folder."""

    path: Path

    @property
    def name(self) -> str:
        """`<slug>-<hash8>`."""
        return self.path.name

    spec = _File("spec.yaml", "The resolved spec this cell was made of.")
    manifest = _File("manifest.json", "Identity, state, and size and digest of every finished artifact.")
    provenance = _File("provenance.json", "What ran, where, on which code and data.")
    checkpoint_last = _File("checkpoint_last.pt", "The newest state of training.")
    checkpoint_previous = _File("checkpoint_previous.pt", "The state before the newest.")
    checkpoint_best = _File(
        "checkpoint_best.pt", "The weights of the best epoch, with all that predicting needs."
    )
    metrics = _File(
        "metrics.jsonl", "One JSON object per logged step or epoch; TensorBoard's tags are its keys."
    )
    scores_val = _File(
        "scores_val.npz", "ids, labels, scores, targets of the validation images under the best checkpoint."
    )
    scores_test = _File(
        "scores_test.npz", "ids, labels, scores of the test images under the best checkpoint."
    )
    report = _File("report.json", "What evaluate found: thresholds, metrics, the table per label.")
    evaluation = _File(
        "evaluation.npz",
        "The same metrics, and each under every bootstrap resample: measured once, read again.",
    )
    card = _File("MODEL_CARD.md", "Of the selected cell: its data, recipe, metrics and limits, for people.")
    own_code = _File("own_code.zip", "The user's own code it was trained with, as it was then.")
    log = _File("log.txt", "What the cell's process printed.")
    meeting = _File("meeting.json", "Where the processes find each other that train the cell together.")

    def rank_log(self, rank: int) -> Path:
        """What a further one of these processes printed; the first one's is the cell's log."""
        return rank_log(self.log, rank)

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or {} where there is none or it cannot be read."""
        manifest = read_json_or_empty(self.manifest)
        return manifest if manifest.get("version") == MANIFEST_VERSION else {}

    def manifest_state(self, identity: str) -> str:
        """`done`, `failed`, `diverged`, `started`, or `new` when there is no manifest of this identity."""
        manifest = self.read_manifest()
        return str(manifest.get("state", "new")) if manifest.get("identity") == identity else "new"

    def faults(self, identity: str) -> int:
        """How often a GPU failed under the cell of this identity since it was begun."""
        manifest = self.read_manifest()
        return int(manifest.get("faults", 0)) if manifest.get("identity") == identity else 0

    def write_manifest(self, identity: str, state: str, *, error: str | None = None, faults: int = 0) -> None:
        """Record the state; for `done`, with size and SHA-256 of every artifact of training."""
        self.check_owned()
        files = {}
        if state == "done":
            checkpoints = (self.checkpoint_last, self.checkpoint_previous, self.checkpoint_best)
            for path in (
                self.spec,
                self.provenance,
                *checkpoints,
                self.metrics,
                self.scores_val,
                self.own_code,
            ):
                if path.exists():
                    files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        manifest = {"version": MANIFEST_VERSION, "identity": identity, "state": state, "files": files}
        more = {"error": error, "faults": faults}
        write_json(self.manifest, manifest | {name: value for name, value in more.items() if value})

    def why_not_done(self, identity: str) -> str | None:
        """None when the cell is complete and of this identity (sizes compared), else why not, in a few words."""
        manifest = self.read_manifest()
        if manifest.get("identity") != identity:
            if not manifest and self.manifest.exists():
                return "artifact damaged: manifest.json"
            return "spec changed" if manifest else "new"
        if manifest["state"] != "done":
            error = manifest.get("error")
            return f"{manifest['state']}: {error}" if error else "unfinished"  # failed or diverged
        for name, expected in manifest["files"].items():
            path = self.path / name
            if not path.exists():
                return f"artifact missing: {name}"
            if path.stat().st_size != expected["bytes"]:
                return f"artifact damaged: {name}"
        return None

    def code_digest(self) -> str:
        """Digest of the code this cell was last started with, "" where that is unknown."""
        try:
            return str(read_json(self.provenance)["code"]["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def digests_of(self, *paths: Path) -> list[str]:
        """The SHA-256 of artifacts by the manifest, "" of one that is not in there."""
        files = self.read_manifest().get("files", {})
        return [str(files.get(path.name, {}).get("sha256", "")) for path in paths]

    def verify(self, path: Path, *others: Path) -> Path:
        """`path` itself once each digest matches the manifest; else a CheckpointError that names the file."""
        remedy = f"delete {self.path} and run `{typed('grid')}` again"
        paths = (path, *others)
        for each, expected in zip(paths, self.digests_of(*paths), strict=True):
            if not expected or not each.exists():
                raise CheckpointError(f"{each}: is not there (or was never finished); {remedy}")
            if sha256_file(each) != expected:
                raise CheckpointError(f"{each}: does not match its digest in manifest.json; {remedy}")
        return path

    def owned(self) -> AbstractContextManager[None]:
        """Hold the folder for this process; where another works in it, a TrainingError that names it."""
        return owned(self.path)

    def check_owned(self) -> None:
        """Before anything is written: a TrainingError if the folder was held and has been taken over."""
        check_owned(self.path)
