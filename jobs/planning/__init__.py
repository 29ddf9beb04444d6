"""What is missing, as which tasks, at what cost. Torch-free."""
