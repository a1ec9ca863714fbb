"""What a method costs in passes, also where another library runs them on a copy of the network."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch

from thesis_lib.classifier import Classifier


@contextlib.contextmanager
def passes(clf: Classifier, size: tuple[int, int] = (224, 224)) -> Iterator[Counter]:
    """Count what passes through a classifier's network inside, also through copies made of it.

    Yields a Counter: "forward" and "backward", in images of `size`; a larger one counts by its
    area. A backward pass counts if it reaches the image: one that ends at the explained layer, as
    class activation maps need it, costs next to nothing.
    """
    counts: Counter = Counter()

    def enter(network, args):
        if torch.is_tensor(args[0]):  # a tensor of this pass alone: an image may go through twice
            return (args[0].view_as(args[0]), *args[1:])

    def leave(network, args, output):
        images = len(output) * args[0].shape[-2] * args[0].shape[-1] / (size[0] * size[1])
        counts["forward"] += images
        if args[0].requires_grad:
            args[0].register_hook(lambda gradient: counts.update(backward=images))

    handles = clf.network.register_forward_pre_hook(enter), clf.network.register_forward_hook(leave)
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
