"""How a cell's attempt ends: recorded in its manifest, said in its log, and nobody else's business. Torch-free."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import DivergedError, LostRankError, PipelineError, TrainingError
from pipeline.own.frozen import in_own_code
from pipeline.storage.files import free_space
from pipeline.storage.run_dir import RunDir
from pipeline.storage.typed import typed

GPU_FAILED_UNDER = "the GPU failed under it"
RANKS_LOST = "processes that train it were lost"
MOST_FAULTS = 3  # of a GPU under one cell, before the cell counts as failed


_FAULTS = ("CUDA error: ", "HIP error: ", "CUDA driver error: ", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
# what a full GPU says at a first product, and what leaves the process usable
_NO_MEMORY = (
    "CUDA error: out of memory",
    "HIP out of memory",
    "_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
_NO_FAULTS = ("no kernel image", "invalid configuration argument", "invalid device ordinal")


def is_device_fault(error: BaseException) -> bool:
    """Whether the GPU itself failed (its memory, its bus, an assert in a kernel): this process cannot use it again.

    A process of the same cell that is gone is the same for the others: no cell is to blame, and none goes on here.
    """
    if isinstance(error, LostRankError):
        return True
    text = str(error)
    # torch has a class for it since 2.8, and a plain RuntimeError before
    by_device = type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError) and text.startswith(_FAULTS)
    )
    return by_device and not any(other in text for other in (*_NO_MEMORY, *_NO_FAULTS))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had no room; outside torch's allocator, libraries say so in their own words."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    )


class Attempt:
    """One cell being trained by this process. What goes wrong under `isolated` ends this cell alone.

    `log`: the file its words go to, where several cells share a process; None: this process's output. Where several
    processes train the cell, the one that `leads` alone writes the manifest.
    """

    def __init__(self, run: RunDir, identity: str, log: Path | None = None, *, leads: bool = True) -> None:
        self.run, self.identity, self.log, self.leads = run, identity, log, leads
        self.error: Exception | None = None
        self.is_done = self.has_saved = False
        self.lost_rank = False  # another process that trains it is gone

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Words go to the cell's own log; an error is recorded as its own and not raised."""
        with contextlib.ExitStack() as stack:
            if self.log is not None:
                file = stack.enter_context(self.log.open("a", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(file))
                stack.enter_context(contextlib.redirect_stderr(file))
            try:
                yield
            except Exception as error:
                if is_device_fault(error):
                    raise  # every cell of this process would meet it, and none is to blame
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Record it in the manifest if possible, print one line; a traceback where it is not a PipelineError."""
        self.error = error
        text = str(error)
        if isinstance(error, OSError):  # what the machine is short of
            where = error.filename or self.run.path
            text = f"{where}: {error.strerror or error} ({free_space(self.run.path)}); use another place"
        elif is_out_of_memory(error):
            text = "out of GPU memory; try a smaller train.batch_size or train.image_px"
        elif not isinstance(error, PipelineError):
            traceback.print_exception(error)
            text = f"{type(error).__name__}: {error}"[:300]
        if (
            (own := in_own_code(error))
            and not isinstance(error, PipelineError)
            and not is_out_of_memory(error)
        ):
            text = f"your own code: {own}; correct it there"
        state = "diverged" if isinstance(error, DivergedError) else "failed"
        with contextlib.suppress(PipelineError):  # a full disk, or a folder that is another process's by now
            self._record(state, error=text.splitlines()[0])
        print(f"error: {text}", flush=True)

    def device_failed(self, error: Exception) -> None:
        """The GPU failed under this cell and perhaps others: unfinished, unless that happened too often."""
        # one that has come further since is not stuck
        faults = 1 if self.has_saved else self.run.faults(self.identity) + 1
        reason = str(error).splitlines()[0]
        is_lost = self.lost_rank = isinstance(error, LostRankError)
        if faults == MOST_FAULTS:
            what = RANKS_LOST if is_lost else GPU_FAILED_UNDER
            self.fail(
                TrainingError(
                    f"{what} {faults} times, last: {reason}; look for what the cells share (a "
                    f"driver, a node, a label out of range), then `{typed('grid')}` goes on from the last save"
                )
            )
            return
        with contextlib.suppress(PipelineError, OSError):
            self._record("started", faults=faults)
        with self.isolated():
            what = reason if is_lost else f"the GPU failed ({reason}), and no cell can go on in this process"
            print(
                f"error: {what}; the next start resumes from the last save (attempt {faults} of {MOST_FAULTS})",
                flush=True,
            )

    def saved(self) -> None:
        """Its state is on the disk."""
        self.has_saved = True

    def done(self) -> None:
        """Every artifact is in place."""
        self._record("done")
        self.is_done = True

    def _record(self, state: str, *, error: str | None = None, faults: int = 0) -> None:
        if self.leads:
            self.run.write_manifest(self.identity, state, error=error, faults=faults)
