"""What was measured of a cell, kept in its folder: read again under the same scores, rule and format. Torch-free.

Cells of a large grid are measured once. Whatever is stale, damaged or missing is measured anew.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.sources import READ_ERRORS
from pipeline.evaluation.leaderboard import Row
from pipeline.evaluation.selection import FORMAT
from pipeline.metrics.bootstrap import Resampled
from pipeline.spec import EvaluateSpec
from pipeline.spec.identity import digest
from pipeline.storage.files import atomic_write, sha256_file
from pipeline.storage.run_dir import RunDir

# R resamples


@dataclass(frozen=True)
class CellEvaluation:
    """A measured cell: its row, on what it was validated, and `select_by` under each bootstrap resample."""

    row: Row
    images: str  # `Validation.digest`: cells with equal ones can be compared
    absent: Sequence[str]  # labels without a validation image
    resampled_R: npt.NDArray[np.float64]
    spec: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value; {} of an ensemble


def key_of(evaluate: EvaluateSpec, made_of: Sequence[str]) -> str:
    """Digest of all that a measurement depends on; `made_of` are the digests of the files it reads.

    The metric that ranks counts only where thresholds are tuned for it: all are kept. The resamples are
    drawn by numpy, whose versions may draw differently; only equal draws can be compared in pairs.
    """
    tuned = evaluate.tuned_for if isinstance(evaluate.threshold, str) else None
    rule = evaluate.model_dump(mode="json", exclude={"select_by"}) | {"tune_for": tuned}
    return digest([FORMAT, np.__version__, rule, list(made_of)])


def keep(run: RunDir, key: str, found: CellEvaluation, resampled: Resampled) -> None:
    """Write `evaluation.npz`; report.json is there already, and belongs to it by its digest."""
    facts = {
        "key": key,
        "report": sha256_file(run.report),
        "images": found.images,
        "absent": list(found.absent),
        "metrics": dict(found.row.metrics),
        "spec": dict(found.spec),
    }
    with atomic_write(run.evaluation) as file:
        np.savez(file, facts=np.array(json.dumps(facts, default=str)), **resampled)  # type: ignore[arg-type]  # numpy's stubs take the names for its own parameters


def kept(run: RunDir, key: str, select_by: str, state: str = "done") -> CellEvaluation | None:
    """What `keep` wrote under this key; None where it is missing, stale or damaged, or its report is."""
    try:
        with zipfile.ZipFile(run.evaluation) as file:
            facts = json.loads(str(_array(file, "facts")))
            if facts["key"] != key or facts["report"] != sha256_file(run.report):
                return None
            resampled_R = _array(file, select_by)
    except (*READ_ERRORS, KeyError):
        return None
    row = Row(run.name, state, metrics=facts["metrics"])
    return CellEvaluation(row, facts["images"], facts["absent"], resampled_R, facts["spec"])


def _array(file: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """An array of an .npz, whose bytes are compared with their CRC before numpy parses them."""
    array: npt.NDArray[Any] = np.load(io.BytesIO(file.read(f"{name}.npy")))
    return array
