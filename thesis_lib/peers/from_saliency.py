"""The method of PAIR's saliency, XRAI, by gradients that captum computes."""

import torch
from torch import Tensor

from thesis_lib.checks import checked, whole
from thesis_lib.classifier import Classifier
from thesis_lib.peers.base import PEERS, library, peer


@PEERS.entry("XRAI", family="perturbation", source="Kapishnikov et al., ICCV 2019")
@peer
@checked(steps=(whole, 1))
def xrai(clf: Classifier, image: Tensor, target: Tensor, steps: int = 10) -> Tensor:
    """XRAI (Kapishnikov et al., 2019): segments ranked by their integrated gradients.

    steps: points of each of two paths, from the darkest and from the brightest value of the image.
    """
    method = library("captum.attr").IntegratedGradients(clf.network)
    ends = [
        method.attribute(image, end, target, n_steps=steps, internal_batch_size=clf.batch)
        for end in (float(image.min()), float(image.max()))
    ]
    pixels, attributions = (x[0].movedim(0, -1).cpu().numpy() for x in (image, sum(ends) / 2))
    ranked = library("saliency.core").XRAI().GetMask(pixels, None, base_attribution=attributions)
    return torch.from_numpy(ranked)[None]
