"""TensorBoard and metrics.jsonl."""
