"""`python -m jobs.stages [module ...]`: read one task as a line and run it, a process for each stage and cell.

When the writer of that line goes away, the stage saves and stops.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading

from jobs.stages import EXIT_FAILED, EXIT_STOPPED, decode, run_task
from jobs.stages.reports import report_to_parent
from pipeline.training.dynamo_stub import install_dynamo_stub


def main() -> int:
    """Import the modules that the arguments name, read a task from standard input and run it."""
    # a stage that is stopped still tidies up after itself; a training cell saves instead
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))
    report_to_parent()
    install_dynamo_stub()
    gc.disable()  # what imports make, stays: looking for garbage among it is a tenth of the start
    for name in sys.argv[1:]:
        with contextlib.suppress(Exception):  # the task meets it again, and says it in its own way
            importlib.import_module(name)
    gc.freeze()
    gc.enable()
    line = sys.stdin.readline()
    if not line:
        return EXIT_STOPPED  # whoever started it needs it no more
    try:
        task = decode(line)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        print(
            f"error: the task on standard input cannot be read ({reason}); start it with `make`", flush=True
        )
        return EXIT_FAILED
    threading.Thread(target=_stop_with_writer, daemon=True).start()
    return run_task(task)


def _stop_with_writer() -> None:
    sys.stdin.read()  # returns when the other end is closed, also by a SIGKILL of its process
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
