"""What `doctor` says of the user's own code: each function tried once, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jobs.planning.plan import Plan, PlannedCell
from pipeline.errors import PipelineError
from pipeline.spec import TrainSpec

_TRIAL = "from jobs.commands.doctor_own import main; main()"


def own_results(plan: Plan) -> Iterator[tuple[bool, str]]:
    """(whether it works, what was found) of each function that cells name, with its options."""
    trials: dict[object, tuple[str, PlannedCell]] = {}
    for cell in plan.cells:
        train = cell.cell.spec.train
        for call in train.own_calls:
            whole = train.model if call.key == "train.model" else None
            trials.setdefault((call, whole, train.image_px), (call.key, cell))
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for key, cell in trials.values():
            labels = _labels(cell)
            if labels is None:
                yield True, "your own code is tried once the data is packed (`wrangle`)"
                return
            assert cell.code is not None
            train = cell.cell.spec.train
            trial = {"key": key, "labels": labels, "code": str(cell.code.freeze(Path(folder)))}
            lines.append(json.dumps(trial | {"train": train.model_dump(mode="json")}))
        yield from _tried(lines) if lines else ()


def _tried(lines: list[str]) -> Iterator[tuple[bool, str]]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TRIAL],  # -P: not from the current folder, as cells run
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )
    found = [json.loads(line[len(_MARK) :]) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    yield from ((ok, text) for ok, text in found)
    if len(found) < len(lines):
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        yield False, f"{json.loads(lines[len(found)])['key']}: its process ended without an answer: {last}"


_MARK = "labelgrid "  # at the beginning of an answer: the user's code may print too


def main() -> None:
    """Answer each trial that comes as a line, with a line."""
    from pipeline.training.dynamo_stub import install_dynamo_stub

    install_dynamo_stub()
    from pipeline.training.own_trial import try_own

    for line in sys.stdin:
        trial = json.loads(line)
        train = TrainSpec.model_validate_json(json.dumps(trial["train"]))
        (call,) = (call for call in train.own_calls if call.key == trial["key"])
        weights = train.model.weights_file
        try:
            text = try_own(
                train, call.key, trial["labels"], Path(trial["code"]), Path(weights) if weights else None
            )
            answer = True, f"{call.name}: {text}"
        except PipelineError as error:
            said = str(error)
            answer = False, said if said.startswith(call.key) else f"{call.key}: {call.name}: {said}"
        print(_MARK + json.dumps(answer), flush=True)


def _labels(cell: PlannedCell) -> int | None:
    """How many labels its data has; None where that is not packed yet."""
    if cell.data.reason not in (None, "new split"):
        return None
    from pipeline.data.packed import PackedSet

    return len(PackedSet.open(cell.data.packed, verify=False).labels)
