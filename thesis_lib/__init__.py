"""Multi-scale Group-CAM: saliency maps of a master thesis, made reproducible."""

from thesis_lib import kernels
from thesis_lib.classifier import Classifier
from thesis_lib.kernels import counting

__all__ = ["Classifier", "counting", "kernels"]
