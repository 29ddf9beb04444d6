"""Evaluate a whole experiment: every finished cell decided, measured and ranked, one selected. Torch-free."""

from __future__ import annotations
