"""MSG-CAM and its peers: saliency maps of a master's thesis, made reproducible.

    import thesis_lib as tl
    clf = tl.load_classifier("vgg19_glyphs")
    maps = tl.METHODS["msg_cam"](clf, images)
"""

from thesis_lib import kernels, plots, report
from thesis_lib.classifier import Classifier
from thesis_lib.data.models import load_classifier
from thesis_lib.experiments import evaluate, insertion_deletion, pointing_game, randomize
from thesis_lib.kernels import counting
from thesis_lib.methods import METHODS, enhance, sess
from thesis_lib.parameters import check_parameters

__all__ = [
    "METHODS",
    "Classifier",
    "check_parameters",
    "counting",
    "enhance",
    "evaluate",
    "insertion_deletion",
    "kernels",
    "load_classifier",
    "plots",
    "pointing_game",
    "randomize",
    "report",
    "sess",
]
