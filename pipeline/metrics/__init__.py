"""From scores to decisions, metrics and intervals: pure functions of arrays. Torch-free."""
