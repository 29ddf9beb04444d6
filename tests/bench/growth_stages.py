"""Each stage of the section `growth`, in a process of its own: `prepare`, then `measure`, which prints JSON.

    growth_stages.py prepare|measure|both '[["Open", "folder", {"N": 1000, "K": 20}]]'

prints the seconds of each and the highest memory of the process meanwhile. It
uses public names alone, so that it measures older versions of the code too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent))

import growth_data as data
import numpy as np

from pipeline.data.packed import PackedSet
from pipeline.data.splits import Split, make_split, read_split, write_split
from pipeline.spec import DataSpec, EvaluateSpec, SamplingSpec, Spec, SubmissionSpec
from pipeline.storage.run_dir import ExperimentDir

Work = Callable[[], object]


class Stage:
    """What lies on disk before, and the work; `pure` work may be repeated."""

    pure = False

    def __init__(self, folder: Path, N: int, K: int, C: int = 1) -> None:
        self.folder, self.N, self.K, self.C = folder, N, K, C
        self.set, self.split = folder / "set", folder / "set" / "split-random.json"
        self.experiment = ExperimentDir(folder / "experiments" / "x")

    def prepare(self) -> None: ...

    def work(self) -> Work:
        raise NotImplementedError


class Labels(Stage):
    """Listing a zip, reading its label table, the report of wrangle."""

    def prepare(self) -> None:
        data.write_pictures(self.folder / "photos.zip", self.N, self.K, archive=True)

    def work(self) -> Work:
        from pipeline.data.wrangle_report import preview

        labels = {"format": "list_csv", "file": "labels.csv"}
        spec = {"source": str(self.folder / "photos.zip"), "images": "images/im{id}.jpg", "labels": labels}
        return lambda: preview(DataSpec.model_validate(spec))


class Open(Stage):
    """Opening a packed set with its labels, and asking for the first name."""

    def prepare(self) -> None:
        data.write_set(self.set, self.N, self.K)

    def work(self) -> Work:
        return lambda: PackedSet.open(self.set).names[0]


class MakeSplit(Open):
    """Dividing the images, and storing how."""

    method = "stratified"

    def work(self) -> Work:
        packed = PackedSet.open(self.set, verify=False)
        split = {"method": self.method, "validation": 0.01, "test": 0.01}
        spec = DataSpec.model_validate({"source": "none", "split": split})
        return lambda: write_split(self.split, make_split(spec, packed), packed)


class RandomSplit(MakeSplit):
    """The same without a look at the labels, and reading it back."""

    method = "random"

    def work(self) -> Work:
        divide = super().work()
        return lambda: (divide(), read_split(self.split))


class Sampling(Stage):
    """Repeat factors of all images, and the rows of an epoch."""

    pure = True

    def work(self) -> Work:
        from pipeline.data.sampling import epoch_rows, expected_repeats

        targets_NK, rows = data.drawn_labels(self.N, self.K), np.arange(self.N)
        spec = SamplingSpec(name="repeat_factor")
        return lambda: epoch_rows(rows, expected_repeats(spec, targets_NK), 0, 0)


class _Scored(Stage):
    pure = True

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, decisions and targets, (N, K)."""
        targets_NK = data.drawn_labels(self.N, self.K)
        scores_NK = data.drawn_scores(targets_NK)
        return scores_NK, (scores_NK >= 0.5).astype(np.uint8), targets_NK


class Metrics(_Scored):
    """All metrics, as after each epoch."""

    def work(self) -> Work:
        from pipeline.metrics.multilabel import all_metrics

        arrays = self.arrays()
        return lambda: all_metrics(*arrays)


class Thresholds(_Scored):
    """Thresholds tuned for F1 per image."""

    def work(self) -> Work:
        from pipeline.metrics.thresholds import tune

        scores_NK, _, targets_NK = self.arrays()
        return lambda: tune("f1_samples_empty1", scores_NK, targets_NK)


class ExpectedF1(_Scored):
    """Decisions of highest expected F1."""

    def work(self) -> Work:
        from pipeline.metrics.expected_f1 import maximise_expected_f1

        scores_NK, _, _ = self.arrays()
        return lambda: maximise_expected_f1(scores_NK, 1.0)


class Bootstrap(_Scored):
    """Every metric on 1,000 resamples."""

    def work(self) -> Work:
        from pipeline.metrics.bootstrap import bootstrap

        arrays = self.arrays()
        return lambda: bootstrap(*arrays)


class Evaluate(Stage):
    """Measuring and ranking C cells of N validation images."""

    share = 0.8  # of the images, for validation

    def prepare(self) -> None:
        images, validation = round(self.N / self.share), self.N
        data.write_set(self.set, images, self.K)
        packed, rows = PackedSet.open(self.set, verify=False), np.arange(images)
        split = Split(rows[validation:], rows[:validation], rows[:0])
        write_split(self.split, split, packed)
        ids, targets_NK = [packed.ids[row] for row in range(validation)], packed.labels_NK[:validation]
        for cell in range(self.C):
            data.write_cell(self.experiment, f"cell{cell}", ids, targets_NK, cell)

    def rank(self, cells: int) -> None:
        from pipeline.evaluation.experiment import evaluate_experiment
        from pipeline.evaluation.selection import EvaluationInputs

        named = tuple((f"cell{cell}-{data.IDENTITY[:8]}", data.IDENTITY) for cell in range(cells))
        rule = EvaluateSpec(threshold="per_label")
        inputs = EvaluationInputs(
            self.experiment, named, rule, SubmissionSpec(), ("data",), (), "SPEC=x.yaml"
        )
        evaluate_experiment(inputs, monitor="f1_micro", sets=[(self.set, self.split)], reasons={})

    def work(self) -> Work:
        return lambda: self.rank(self.C)


class EvaluateLarge(Evaluate):
    """The same, validated on a hundredth of the images of a set."""

    share = 0.01


class EvaluateAgain(Evaluate):
    """The same again, with nothing new."""

    def work(self) -> Work:
        self.rank(self.C)
        return lambda: self.rank(self.C)


class EvaluateOneMore(Evaluate):
    """The same with one cell added."""

    def work(self) -> Work:
        self.rank(self.C - 1)
        return lambda: self.rank(self.C)


class Submission(Stage):
    """Deciding, writing and checking a submission of test images whose labels are not known."""

    def prepare(self) -> None:
        data.write_set(self.set, self.N, 0)
        targets_NK = data.drawn_labels(500, self.K)
        run = data.write_cell(self.experiment, "cell0", [str(i) for i in range(500)], targets_NK, 0)
        data.write_test_scores(run, self.set, self.N, self.K)

    def work(self) -> Work:
        from pipeline.evaluation.submission import make_submission

        run = self.experiment.find("cell0")
        tests = {run.name: (self.set, None)}
        return lambda: make_submission(self.experiment, [run], tests, EvaluateSpec(threshold=0.5))


class Plan(Stage):
    """`jobs plan` of a folder that was planned once before."""

    verb = "plan"

    def prepare(self) -> None:
        source = data.write_pictures(self.folder / "photos", self.N, self.K, archive=False)
        spec = {"source": str(source), "images": "images/im{id}.jpg"}
        spec["labels"] = {"format": "list_csv", "file": "labels.csv"}
        path = self.folder / "experiments" / "x.yaml"
        path.parent.mkdir()
        path.write_text(json.dumps({"data": spec, "train": {"epochs": 1}}))
        self.work()()

    def work(self) -> Work:
        code = (
            "import sys; from pathlib import Path; from jobs.cli import main; main(sys.argv[1:]);"
            "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
        )
        command = [sys.executable, "-c", code, self.verb, "experiments/x.yaml"]

        def run() -> float:
            """The highest memory of that process, in MiB."""
            done = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True)
            return int(done.stdout.split()[-1]) / 1024

        return run


class Status(Plan):
    """`jobs status` of the same."""

    verb = "status"


class Start(RandomSplit):
    """What a training does until its first batch of images is there, with repeat-factor sampling."""

    def prepare(self) -> None:
        super().prepare()
        MakeSplit.work(self)()

    def work(self) -> Work:
        from pipeline.training.attempt import Attempt
        from pipeline.training.feeds import build_feed
        from pipeline.training.learner import CellData, Learner

        train = {"model": {"name": "cnn2"}, "image_px": data.PX, "epochs": 1}
        train |= {"sampling": {"name": "repeat_factor"}}
        spec = Spec.model_validate(
            {"name": "x", "data": {"source": "none", "size_px": data.PX}, "train": train}
        )
        run = self.experiment.cell("cell", data.IDENTITY, {})
        run.path.mkdir(parents=True)

        def start() -> object:
            rows = read_split(self.split)
            found = CellData(PackedSet.open(self.set), rows.train, rows.validation)
            learner = Learner(spec, Attempt(run, data.IDENTITY), found, weights=None)
            return next(iter(build_feed(learner).batches(0, 0)))

        return start


def _memory_mib(reset: bool = False) -> float:
    """The highest memory of this process, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(stage: Stage, *, repeat: bool) -> dict[str, float]:
    """The seconds of its work, the least where that is repeated, and the highest memory meanwhile."""
    work, seconds = stage.work(), []
    _memory_mib(reset=True)
    while not seconds or (repeat and stage.pure and sum(seconds) < 0.5):
        started = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds), "mib": found if isinstance(found, float) else _memory_mib()}


def main() -> None:
    step, jobs = sys.argv[1:]
    for name, folder, sizes in json.loads(jobs):
        stage: Stage = globals()[name](Path(folder), **sizes)
        if step != "measure":
            stage.prepare()
        if step != "prepare":
            print(json.dumps(measure(stage, repeat=step == "measure")), flush=True)


if __name__ == "__main__":
    main()
