"""Files on disk: written completely or not at all, owned by one process, named in one place. Torch-free."""
