"""How a cell's attempt ends: recorded in its manifest, said in its log, and nobody else's business. Torch-free."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import DivergedError, PipelineError
from pipeline.storage.files import free_space
from pipeline.storage.run_dir import RunDir


class Attempt:
    """One cell being trained by this process. What goes wrong under `isolated` ends this cell alone.

    `log`: the file its words go to, where several cells share a process; None: this process's output.
    """

    def __init__(self, run: RunDir, identity: str, log: Path | None = None) -> None:
        self.run, self.identity, self.log = run, identity, log
        self.error: Exception | None = None
        self.is_done = False

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
            except Exception as error:  # noqa: BLE001 - recorded: the other cells go on
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Record it in the manifest if possible, print one line; a traceback where it is not a PipelineError."""
        self.error = error
        text = str(error)
        if isinstance(error, OSError):  # what the machine is short of
            where = error.filename or self.run.path
            text = f"{where}: {error.strerror or error} ({free_space(self.run.path)}); use another place"
        elif type(error).__name__ == "OutOfMemoryError":  # torch's, of the GPU
            text = "out of GPU memory; try a smaller train.batch_size or train.image_px"
        elif not isinstance(error, PipelineError):
            traceback.print_exception(error)
            text = f"{type(error).__name__}: {error}"[:300]
        state = "diverged" if isinstance(error, DivergedError) else "failed"
        with contextlib.suppress(PipelineError):  # a full disk, or a folder that is another process's by now
            self.run.write_manifest(self.identity, state, error=text.splitlines()[0])
        print(f"error: {text}", flush=True)

    def done(self) -> None:
        """Every artifact is in place."""
        self.run.write_manifest(self.identity, "done")
        self.is_done = True
