"""What a stage's process reports of its work to the one that started it: a line of JSON at a time, on a pipe.

A pipe and no file: no shared disk sees a write of every running cell twice a second, and a killed process leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict

from pipeline.progress import State, listen

REPORTS_TO = "LABELGRID_REPORTS_TO"  # in a process's environment: the number of its end of the pipe


class Reports:
    """The reading end; `descriptor` is the end for the process, which must be `given` to it once."""

    def __init__(self) -> None:
        self._ours, self.descriptor = os.pipe()
        os.set_blocking(self._ours, False)
        self._rest = b""

    def given(self) -> None:
        """The process has its end: ours of that is closed."""
        os.close(self.descriptor)
        self.descriptor = -1

    def read(self) -> list[State]:
        """What came since the last call, in order; never waits."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._ours, 1 << 16):
                self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        return [State(**json.loads(line)) for line in lines]

    def close(self) -> None:
        """Let go of the ends we have."""
        for descriptor in {self._ours, self.descriptor} - {-1}:
            os.close(descriptor)
        self._ours = self.descriptor = -1

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def report_to_parent() -> None:
    """From now on `pipeline.progress` is told to the process that gave us a pipe, if it did."""
    if not (number := os.environ.pop(REPORTS_TO, "")):  # children of ours do not have it
        return
    descriptor = int(number)
    os.set_inheritable(descriptor, False)
    os.set_blocking(descriptor, False)

    def send(state: State) -> None:
        line = json.dumps(asdict(state)) + "\n"
        with contextlib.suppress(OSError):  # a pipe that nobody reads: work does not wait for its listener
            os.write(descriptor, line.encode())  # less than PIPE_BUF: whole or not at all

    listen(send)
