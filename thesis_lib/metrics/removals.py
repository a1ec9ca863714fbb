"""More measures of a map, from after RISE: each with an answer of its own to what a removed pixel leaves behind.

Beside `judged`, for the same question (see `known`).
"""

from collections.abc import Callable

import torch

from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.pieces import f_fidelity, infidelity, single_deletion
from thesis_lib.metrics.road import road


@METRICS.entry(
    "newer measures of a map",
    chinese="较新的显著图指标",
    source="not in the thesis; arXiv 2202.00449, 1901.09392, 2407.11910, 2410.02970",
    explains="masked",
    columns={
        "road": Column("ROAD", +1, tolerance=0.005),
        "road_least": Column("ROAD, weakest pixels imputed", +1, tolerance=0.005),
        "road_most": Column("ROAD, strongest pixels imputed", -1, tolerance=0.005),
        "infidelity": Column("infidelity, scaled", -1),
        "single_deletion": Column("single deletion, rank correlation", +1, tolerance=0.02, scale=1),
        "f_fidelity": Column("bounded fidelity, strongest less weakest", +1, tolerance=0.005),
        "f_fidelity_plus": Column("bounded fidelity, without the strongest", +1, tolerance=0.005),
        "f_fidelity_minus": Column("bounded fidelity, without the weakest", -1, tolerance=0.005),
    },
)
def removals_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """ROAD, infidelity, single deletion and F-Fidelity's bounded removal, on the network as it is."""
    given = rounds.classifier, rounds.images, maps, rounds.classes
    least, most = road(*given)
    plus, minus = f_fidelity(*given)
    found = {
        "road": (least - most) / 2,
        "road_least": least,
        "road_most": most,
        "infidelity": infidelity(*given),
        "single_deletion": single_deletion(*given),
        "f_fidelity": plus - minus,
        "f_fidelity_plus": plus,
        "f_fidelity_minus": minus,
    }
    return {column: values.double().cpu().numpy() for column, values in found.items()}
