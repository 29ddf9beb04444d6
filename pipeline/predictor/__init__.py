"""A trained cell in Python, three lines from an image to its labels.

    from pipeline.predictor import Predictor

    model = Predictor.load("experiments/demo")  # its selected cell; a cell's own folder works too
    print(model("photo.jpg").labels, model("photo.jpg").scores)

Pictures are packed, scored and decided by the functions that wrangle, evaluate and submission use.
"""

from pipeline.predictor.pictures import Picture
from pipeline.predictor.predictor import Predictor
from pipeline.predictor.results import Prediction, Predictions

__all__ = ["Picture", "Prediction", "Predictions", "Predictor"]
