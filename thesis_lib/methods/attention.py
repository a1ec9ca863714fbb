"""Explanations of Vision Transformers by their attention (Chefer et al., CVPR 2021, and relatives).

A ViT is taken apart by `open_vit`, relevance runs back through it in `relevance`; here are the methods.
"""

import torch
from torch import Tensor

from thesis_lib.checks import checked, whole
from thesis_lib.classifier import Classes, Classifier
from thesis_lib.layers import token_grid
from thesis_lib.methods.base import METHODS, explainer
from thesis_lib.methods.open_vit import attention_gradients, open_vit
from thesis_lib.methods.relevance import attention_relevance


@METHODS.entry(
    "Transformer attribution",
    family="transformer",
    colour="#882255",
    line="-",
    source="Chefer et al., CVPR 2021",
)
@explainer(share=4)  # measured: its many matrices L x L are faster in a CPU's cache
@checked(start_layer=(whole,))
def transformer_attribution(
    clf: Classifier,
    images: Tensor,
    classes: Classes = None,
    *,
    start_layer: int = 0,
    batch: int | None = None,
) -> Tensor:
    """Transformer attribution (Chefer et al., CVPR 2021).

    Relevance R starts as 1 at the class's logit and runs back to the attention matrices A_b by
    layer-wise relevance propagation; A'_b = I + mean over heads of max(0, dF_c/dA_b * R_b); the map
    is the class token's row of A'_B ... A'_1. As in the official code, rows are not normalised;
    unlike there, relevance is kept image by image.

    Args:
        clf, images, classes, batch: as `grad_cam`, and the result; maps at the resolution of the
            tokens, up-sampled.
        start_layer: the first block in the product: 0 as in the authors' examples, 1 as in their
            evaluation.

    Raises:
        ValueError: a network that is no plain ViT; a block that does not exist; or as `grad_cam`.

    >>> maps = tl.METHODS["transformer_attribution"](vit, images)
    >>> maps.shape, float(maps.max())
    (torch.Size([1, 224, 224]), 1.0)
    """
    trace = open_vit(clf, images, classes)
    if not 0 <= start_layer < len(trace.blocks):
        raise ValueError(f"start_layer is 0 to {len(trace.blocks) - 1}, not {start_layer}")
    trace = trace._replace(blocks=trace.blocks[start_layer:], states=trace.states[start_layer:])
    relevances = attention_relevance(trace)
    steps = [_positive(g * r) for g, r in zip(attention_gradients(trace), relevances, strict=True)]
    return _class_row(steps, images)


@METHODS.entry(
    "Gradient × attention",
    family="transformer",
    colour="#117733",
    line="--",
    source="Chefer et al., ICCV 2021",
)
@explainer()
def gradient_attention(
    clf: Classifier, images: Tensor, classes: Classes = None, *, batch: int | None = None
) -> Tensor:
    """Transformer attribution with A itself for its relevance: max(0, dF_c/dA * A).

    The rule for self-attention of "Generic attention-model explainability" (Chefer et al., ICCV
    2021): no relevance propagation, so a fraction of the cost.

    images, classes, batch, result: as `transformer_attribution`.

    >>> tl.METHODS["gradient_attention"](vit, images).shape
    torch.Size([1, 224, 224])
    """
    trace = open_vit(clf, images, classes)
    attentions = [state.attention.detach() for state in trace.states]
    steps = [_positive(g * a) for g, a in zip(attention_gradients(trace), attentions, strict=True)]
    return _class_row(steps, images)


@METHODS.entry(
    "Attention rollout", family="transformer", colour="#999933", line=":", source="Abnar & Zuidema, ACL 2020"
)
@explainer()
def attention_rollout(
    clf: Classifier, images: Tensor, classes: Classes = None, *, batch: int | None = None
) -> Tensor:
    """Attention rollout (Abnar & Zuidema, ACL 2020): the product of (I + mean over heads of A) / 2.

    It does not look at the class: all classes of an image have the same map. (The halves are left
    out: min-max removes them.)

    images, classes, batch, result: as `transformer_attribution`.

    >>> rollout = tl.METHODS["attention_rollout"]
    >>> bool((rollout(vit, images, 3) == rollout(vit, images, 7)).all())
    True
    """
    states = open_vit(clf, images, classes).states
    return _class_row([state.attention.detach().mean(1) for state in states], images)


def _positive(products):
    """Mean over heads of what is positive: (N, M, L, L) -> (N, L, L); works in place."""
    return products.relu_().mean(1)


def _class_row(steps, images):
    """The class token's row of (I + step_B) ... (I + step_1), as a map (N, h, w) of the tokens."""
    row = torch.zeros_like(steps[0][:, 0])
    row[:, 0] = 1
    for step in reversed(steps):
        row = row + (row[:, None] @ step)[:, 0]
    first, grid = token_grid(row.shape[1], images.shape[-2:])
    return row[:, first:].unflatten(1, grid)
