"""Code of the user's own: found in the project, checked without being run, frozen, and imported from its frozen copy.

`source.py` is torch-free and imports nothing of the user's; `frozen.py` imports it.
"""
