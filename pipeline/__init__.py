"""Labelgrid's library: data, models, training, evaluation and prediction; knows nothing of clusters."""

__version__ = "0.2.0"
