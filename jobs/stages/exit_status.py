"""How a stage's process ends, for the process that started it. 0: everything asked for is done."""

EXIT_FAILED = 2  # a PipelineError: said in one line, worth no traceback
EXIT_STOPPED = 75  # stopped by a signal with everything saved; starting again goes on
EXIT_RANK_LOST = 73  # another process of the same cell ended; what was saved stays, and another start goes on
EXIT_DEVICE_FAILED = 74  # the GPU itself; what was saved stays, and another start (on another GPU) goes on
