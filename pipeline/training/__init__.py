"""Training: the loop, one cell's state, losses, optimizers, schedules."""
