"""The thesis's experiments: a classifier, images and maps in, numbers out."""

from thesis_lib.experiments.fineness import boundary_distance, effective_resolution
from thesis_lib.experiments.insertion_deletion import InsertionDeletion, insertion_deletion
from thesis_lib.experiments.pointing_game import energy_inside, mean_over_classes, pointing_game
from thesis_lib.experiments.runs import evaluate, load_rows
from thesis_lib.experiments.sanity import randomize, similarity

__all__ = [
    "InsertionDeletion",
    "boundary_distance",
    "effective_resolution",
    "energy_inside",
    "evaluate",
    "insertion_deletion",
    "load_rows",
    "mean_over_classes",
    "pointing_game",
    "randomize",
    "similarity",
]
