"""`labelgrid` and `python -m jobs`: the one entry point; the Makefile calls nothing else."""

import gc
import sys

gc.disable()  # what imports make, stays: looking for garbage among it is a tenth of the start
from jobs.cli import main  # noqa: E402 - the line above must come before it; it enables gc once all is imported

if __name__ == "__main__":
    sys.exit(main())
