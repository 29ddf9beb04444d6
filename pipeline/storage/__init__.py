"""Files on disk: written whole or not at all, owned by one process, named in one place. Torch-free."""
