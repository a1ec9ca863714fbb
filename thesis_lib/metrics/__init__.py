"""Metrics: a classifier, images, maps and truth in, numbers out."""

from thesis_lib.metrics import removals
from thesis_lib.metrics.base import METRICS, Column, Metric, Rounds
from thesis_lib.metrics.borders import borders
from thesis_lib.metrics.canvases import deletion_onto
from thesis_lib.metrics.fineness import boundary_distance, effective_resolution
from thesis_lib.metrics.insertion_deletion import InsertionDeletion, insertion_deletion
from thesis_lib.metrics.judged import best_iou
from thesis_lib.metrics.occurrences import occurrences
from thesis_lib.metrics.pieces import f_fidelity, infidelity, single_deletion
from thesis_lib.metrics.pointing_game import energy_inside, mean_over_classes, pointing_game
from thesis_lib.metrics.road import linear_imputation, road
from thesis_lib.metrics.sanity import randomize, similarity
