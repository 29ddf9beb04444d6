"""Every error a user can cause, one small tree.

PipelineError            anything below; its text names the place, the value and the remedy
├── SpecError            the YAML file, an override, or a grid of it
├── DataError            images, label files, splits, packed sets, downloads
├── CheckpointError      a checkpoint or another artifact that is damaged, foreign or missing
├── TrainingError        a run that cannot go on (wrong shapes, no memory)
│   ├── DivergedError    its loss, weights or scores are no longer finite: it would end so again
│   └── LostRankError    of several processes that train a cell, another one is gone
├── SubmissionError      nothing to select from, or a submission file that fails its check
└── LaunchError          a cell or stage that could not be started
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors that are reported to the user as one clear text, without a traceback."""


class SpecError(PipelineError):
    """The spec, an override or the grid is wrong; the text lists every mistake found."""


class DataError(PipelineError):
    """Images, labels, splits or a packed set are missing, damaged or contradict one another."""


class CheckpointError(PipelineError):
    """A checkpoint or artifact is damaged, belongs to another spec, or is not there."""


class TrainingError(PipelineError):
    """Training cannot go on."""


class DivergedError(TrainingError):
    """Loss, weights or scores stopped being finite; the same steps would do so again, so nothing retries it."""


class LostRankError(TrainingError):
    """Another process of the cell ended or fell silent; what is saved stays, and another start goes on."""


class SubmissionError(PipelineError):
    """There is no usable selection, or the submission file does not pass its check."""


class LaunchError(PipelineError):
    """A stage could not be started."""
