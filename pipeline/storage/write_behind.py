"""Writes that need not be waited for: the disk works while a GPU computes. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Does what it is given in its order: at once, or (`behind`) in a thread of its own.

    Once a write has failed, those after it are not done, so that no file goes ahead of one that it relies on; the
    next `wait` raises the error.
    """

    def __init__(self, *, behind: bool) -> None:
        self._thread = ThreadPoolExecutor(1) if behind else None
        self._pending: list[Future[None]] = []
        self._error: Exception | None = None

    def __call__(self, write: Callable[[], None]) -> None:
        """Do it now, or after those before it. What it holds must not be changed until then."""
        if self._thread is None:
            write()
        else:
            self._pending.append(self._thread.submit(self._unless_failed, write))

    def wait(self) -> None:
        """Return once all is written; raises what has failed."""
        for write in self._pending:
            write.result()
        self._pending.clear()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _unless_failed(self, write: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            write()
        except Exception as error:  # noqa: BLE001 - whatever it is, `wait` raises it
            self._error = error
