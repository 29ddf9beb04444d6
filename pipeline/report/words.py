"""The words of the page, for a reader who meets them here for the first time."""

WORDS = (
    ("cell", "one training run: a spec with one value for every setting, in a folder of its own"),
    ("recipe", "cells that differ in nothing but seed and split; they are ranked by their mean"),
    ("baseline-blank", "no label for any image"),
    ("baseline-prior", "each label drawn at its frequency in training: what chance gives"),
    ("precision, recall", "of the predicted labels the fraction that is true; of the true labels the fraction found"),
    ("F1", "the harmonic mean of precision and recall; micro counts over all labels together, macro is the mean over "
     "labels, samples the mean over images"),
    ("average precision (AP)", "the mean of the precision at each true image, by falling score; it needs no threshold. "
     "map_macro is its mean over labels"),
    ("decision rule", "what turns scores into labels: a threshold, one for each label, or the most likely set"),
    ("cross-fitted", "tuned on four fifths of the validation images and measured on the fifth, in turn"),
    ("95 % interval", "where the value would lie for 95 of 100 other draws of the validation images"),
    ("p corrected", "how often chance alone makes such a difference, corrected for the number of pairs (Holm)"),
    ("calibration", "whether of the labels with score 0.8 eight in ten are true; ECE is the mean distance from that"),
)  # fmt: skip
