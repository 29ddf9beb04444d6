"""Labelgrid's library: data, models, training, evaluation and prediction; knows nothing of clusters."""
