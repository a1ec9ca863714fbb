"""What all methods share: batches of images in, finished maps out."""

import functools

import torch

from thesis_lib.kernels import count, min_max, resize


def explainer(share=1):
    """Make a method of a function that explains one batch of images.

    The function, `(clf, images, classes or None, **settings)`, returns raw maps (n, h, w);
    the method takes any number of images and returns maps (N, H, W) in [0, 1], float32 (float64
    for a float64 network). A map that is flat or not finite becomes zero and is counted.

    share: the batches are 1/share of the classifier's, where one image needs much memory.

    >>> @explainer()
    ... def brightest(clf, images, classes=None, *, batch=None):
    ...     return clf.denormalise(images).mean(1)
    >>> maps = brightest(clf, images)
    >>> maps.shape, float(maps.max())
    (torch.Size([1, 224, 224]), 1.0)
    """

    def decorate(function):
        @functools.wraps(function)
        def method(clf, images, classes=None, *, batch=None, **settings):
            clf = clf if batch is None else clf.with_batch(batch)
            images = clf.prepare(images)
            classes = clf.targets(classes, len(images))
            n = max(1, clf.batch // share)
            parts = images.split(n)
            targets = [None] * len(parts) if classes is None else classes.split(n)
            with torch.no_grad():
                raw = [function(clf, p, t, **settings) for p, t in zip(parts, targets, strict=True)]
                maps = min_max(resize(torch.cat(raw)[:, None], images.shape[-2:]))[:, 0]
            count("flat maps", (maps.amax((1, 2)) == 0).sum())
            return maps

        return method

    return decorate
