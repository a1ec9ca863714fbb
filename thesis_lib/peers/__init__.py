"""Methods of other libraries as `method(classifier, images, classes=None) -> maps`, for chapter 1.

Captum, TorchCAM, pytorch-grad-cam and PAIR's saliency come with the extra `.[peers]`; each is
imported when a method of its is called. What no library has stands here in a few lines: RISE,
excitation backpropagation, Relevance-CAM, extremal perturbation.

    maps = tl.peers.METHODS["integrated_gradients"](clf, images)      # (N, H, W) in [0, 1]
    maps = tl.peers.torchcam("LayerCAM")(clf, images, classes=[3, 7])  # any class of TorchCAM

Conventions, so that maps may be compared: what is left out of a picture is replaced by the mean
colour, which is 0 after normalisation; gradients are those of the class's logit, and what looks at
outputs alone looks at its probability. Images are explained one by one, each from seed 0, so that a
map does not depend on the others. Libraries get a copy of the network, in eval mode and with nothing
in place.
"""

import contextlib
import copy
import functools
import importlib
import io
import warnings
from collections import Counter

import torch
from skimage.segmentation import slic
from torch import nn

from thesis_lib.kernels import blur, masked_scores, resize
from thesis_lib.methods.base import explainer


def _library(module):
    """A module of a library that thesis_lib does without."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name.split(".")[0] != package:
            raise
        raise ImportError(
            f'{package} is not installed; it comes with the extra "peers": pip install -e ".[peers]"'
        ) from error


def _lend(clf):
    """The classifier with a copy of its network that a library may hook and change."""
    lent = copy.copy(clf)
    lent.network = copy.deepcopy(clf.network).eval().requires_grad_(False)
    for module in lent.network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return lent


def peer(function):
    """Make a method of a function (lent classifier, image (1, 3, H, W), class (1,)) -> (1, h, w).

    The method takes (classifier, images, classes=None, **settings) and returns maps (N, H, W) in
    [0, 1], as those of `thesis_lib.METHODS`; a flat or non-finite map becomes zero and is counted.
    """

    @explainer()
    @functools.wraps(function)
    def method(clf, images, classes=None, **settings):
        classes = clf.predict(images) if classes is None else classes
        devices, maps = [clf.device] if clf.device.type == "cuda" else [], []
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum says each time that it sets hooks
            lent = _lend(clf)
            for image, target in zip(images.split(1), classes.split(1), strict=True):
                with torch.random.fork_rng(devices):
                    torch.manual_seed(0)
                    # Copies: autograd refuses what the caller's inference_mode made.
                    one = function(lent, image.clone(), target.clone(), **settings)
                maps.append(torch.as_tensor(one, device=clf.device).detach().to(clf.dtype))
        return torch.cat(maps)

    return method


# Backpropagation


def pixelwise(attribute):
    """Make a method of a function (lent classifier, image, class) -> attributions (1, 3, H, W).

    The method has one setting more. reading: "absolute", the largest absolute value over the
    colours (Simonyan et al., 2014); or "positive", the sum over the colours where it is above 0,
    which is what speaks for the class.
    """

    @peer
    @functools.wraps(attribute)
    def method(clf, image, target, reading="absolute", **settings):
        if reading not in ("absolute", "positive"):
            raise ValueError(f'reading is "absolute" or "positive", not {reading!r}')
        colours = attribute(clf, image, target, **settings)
        return colours.abs().amax(1) if reading == "absolute" else colours.sum(1).relu()

    return method


def _captum(name):
    """The method of captum whose class is called so and needs nothing but the network."""

    @pixelwise
    def method(clf, image, target):
        return getattr(_library("captum.attr"), name)(clf.network).attribute(image, target=target)

    return method


def _noisy(kind):
    """SmoothGrad and VarGrad, captum's: mean and variance of the gradient over noisy images."""

    @pixelwise
    def method(clf, image, target, samples=16, noise=0.15):
        """samples: noisy copies. noise: their standard deviation, as a share of the image's range."""
        attr = _library("captum.attr")
        return attr.NoiseTunnel(attr.Saliency(clf.network)).attribute(
            image, kind, samples, clf.batch, noise * float(image.max() - image.min()),
            target=target, abs=False,
        )  # fmt: skip

    return method


@pixelwise
def integrated_gradients(clf, image, target, steps=20):
    """Integrated gradients (Sundararajan et al., 2017), captum's, from the mean colour.

    steps: points of the path, those of Gauss and Legendre's quadrature.
    """
    method = _library("captum.attr").IntegratedGradients(clf.network)
    return method.attribute(image, 0, target, n_steps=steps, internal_batch_size=clf.batch)


@pixelwise
def lrp(clf, image, target, gamma=0.25):
    """Layer-wise relevance propagation (Bach et al., 2015), captum's: rule epsilon, gamma in convolutions.

    gamma: how much more a convolution's positive weights count; 0 leaves the epsilon rule alone,
    which is gradient times input in a network of ReLUs. Layers that captum has no rule for, such as
    a Transformer's, raise TypeError.
    """
    rules = _library("captum.attr._utils.lrp_rules")
    for module in clf.network.modules():
        if isinstance(module, nn.Conv2d) and gamma:
            module.rule = rules.GammaRule(gamma)
        elif isinstance(module, (nn.Flatten, nn.Identity)):  # captum knows no rule for them
            module.rule = rules.EpsilonRule()
    return _library("captum.attr").LRP(clf.network).attribute(image, target=target)


def _excite(network):
    """Let relevance run backwards as excitation backpropagation has it, by changing gradients only.

    A layer y = W a + b hands the probability P of its outputs on by its positive weights:
    P(a_j) = a_j sum_i w+_ij P(y_i) / z_i with z = W+ a. With P = value x gradient this is what
    autograd computes once the layer returns y z / z', z' being z without a gradient: y still.
    """
    for layer in [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
        positive = copy.deepcopy(layer)
        positive.weight.clamp_(min=0)
        positive.bias = None
        layer.register_forward_hook(functools.partial(_by_positive_weights, positive))


def _by_positive_weights(positive, layer, args, output):
    if torch.is_grad_enabled():  # that is, behind the explained layer
        z = positive(*args)
        tiny = torch.finfo(z.dtype).tiny
        return output.detach() * torch.where(z > 0, z / z.detach().clamp(min=tiny), 1)


@peer
def excitation_backprop(clf, image, target):
    """Excitation backpropagation (Zhang et al., 2018) down to the explained layer, without contrast.

    The layer's features must not be negative. Without biases the map's sum is that of the output.
    """
    lent = _lend(clf)
    _excite(lent.network)
    features, gradients, _, _ = lent.features_and_gradients(image, target)
    return (features * gradients).sum(1)


# Class activation


def torchcam(name, **settings):
    """The method of TorchCAM whose class is called so, such as "LayerCAM", on the explained layer."""

    @peer
    def method(clf, image, target):
        extractor = getattr(_library("torchcam.methods"), name)
        with extractor(clf.network, clf.layer, **settings) as cam:
            scores = clf.network(image.requires_grad_())
            return cam(target.item(), scores, normalized=False)[0].relu()

    return method


def pytorch_grad_cam(name, **settings):
    """The method of pytorch-grad-cam whose class is called so, such as "HiResCAM", on the explained layer."""

    @peer
    def method(clf, image, target):
        library = _library("pytorch_grad_cam")
        wanted = _library("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        layer = clf.network.get_submodule(clf.layer)
        # Its progress bars go to stderr, and cannot be switched off.
        with contextlib.redirect_stderr(io.StringIO()):
            with getattr(library, name)(clf.network, [layer], **settings) as method:
                return method(image.requires_grad_(), [wanted(target.item())])

    return method


@peer
def cam(clf, image, target):
    """CAM (Zhou et al., 2016), TorchCAM's: channels weighed by the linear layer behind global pooling.

    Raises ValueError for a network with more than one linear layer, whose channels have no weights.
    """
    linear = [n for n, m in clf.network.named_modules() if isinstance(m, nn.Linear)]
    if len(linear) != 1:
        raise ValueError(
            "CAM needs one linear layer behind global average pooling, as ResNets have it; this "
            f"network has {len(linear)} linear layers"
        )
    with _library("torchcam.methods").CAM(clf.network, clf.layer, linear[0]) as method:
        clf.network(image)
        return method(target.item(), normalized=False)[0].relu()


@peer
def relevance_cam(clf, image, target):
    """Relevance-CAM (Lee et al., 2021): channels weighed by their relevance at the explained layer.

    Relevance runs back from 1 at the class and -1 / (C - 1) at each other one, by positive weights
    (alpha 1, beta 0), as excitation backpropagation has it; map = ReLU(sum_k R_k A_k), R_k the mean.
    """
    lent = _lend(clf)
    _excite(lent.network)
    lent.network.register_forward_hook(_contrast)
    features, gradients, _, _ = lent.features_and_gradients(image, target)
    weights = (features * gradients).mean((-2, -1), keepdim=True)
    return (weights * features).sum(1).relu()


def _contrast(network, args, logits):
    """Logits (1, C) whose gradients start at 1 (over the logit) for a class, -1 / (C - 1) for others."""
    if torch.is_grad_enabled():
        ones = torch.where(logits == 0, 0, logits / logits.detach())
        return ones - (ones.sum(1, keepdim=True) - ones) / (ones.shape[1] - 1)


# Perturbation


def _probability(clf, target):
    """Images (n, 3, H, W) -> the class's probabilities (n,), as captum wants it."""
    return lambda images: clf.scores(images, target.expand(len(images)), "probability")


def _superpixels(clf, image, count):
    """About `count` areas of even colour: int64 (1, 1, H, W)."""
    pixels = clf.denormalise(image)[0].clamp(0, 1).permute(1, 2, 0).cpu().double().numpy()
    areas = slic(pixels, count, start_label=0, channel_axis=-1)
    return torch.from_numpy(areas)[None, None].to(image.device)


@peer
def occlusion(clf, image, target, window=48, stride=24):
    """Occlusion (Zeiler & Fergus, 2014), captum's: how much a hidden square takes off the probability."""
    method = _library("captum.attr").Occlusion(_probability(clf, target))
    size = (3, window, window)
    return method.attribute(
        image, size, (3, stride, stride), perturbations_per_eval=clf.batch
    )[:, 0].relu()  # fmt: skip


@peer
def kernel_shap(clf, image, target, samples=100, areas=40):
    """Kernel SHAP (Lundberg & Lee, 2017), captum's: Shapley values of superpixels, by regression."""
    method = _library("captum.attr").KernelShap(_probability(clf, target))
    mask = _superpixels(clf, image, areas)
    return method.attribute(
        image, feature_mask=mask, n_samples=samples, perturbations_per_eval=clf.batch
    )[:, 0].relu()  # fmt: skip


@peer
def lime(clf, image, target, samples=100, areas=40):
    """LIME (Ribeiro et al., 2016), captum's: a linear model of the probability by superpixels shown."""
    ridge = _library("captum._utils.models.linear_model").SkLearnRidge(alpha=1.0)
    method = _library("captum.attr").Lime(_probability(clf, target), ridge)
    mask = _superpixels(clf, image, areas)
    return method.attribute(
        image, feature_mask=mask, n_samples=samples, perturbations_per_eval=clf.batch
    )[:, 0].relu()  # fmt: skip


@peer
def rise(clf, image, target, samples=150, cells=7, share=0.5):
    """RISE (Petsiuk et al., 2018): the mean of random masks, weighed by the probability seen through each.

    samples: masks, 4,000 to 8,000 in the paper. cells: a mask is a grid of cells x cells, each
    shown with probability `share`, enlarged and shifted by up to one cell.
    """
    height, width = image.shape[-2:]
    cell = -(-height // cells), -(-width // cells)
    grids = (torch.rand(samples, 1, cells + 1, cells + 1) < share).to(image.dtype)
    big = resize(grids, [(cells + 1) * pixels for pixels in cell])
    shifts = [torch.randint(pixels, (samples,)).tolist() for pixels in cell]
    masks = torch.stack([
        big[i, 0, y : y + height, x : x + width] for i, (y, x) in enumerate(zip(*shifts, strict=True))
    ]).to(image.device)  # fmt: skip
    score = _probability(clf, target)
    weights = masked_scores(
        lambda inputs, owners: score(inputs), image, torch.zeros_like(image), masks[None],
        lambda mask: mask, clf.batch,
    )  # fmt: skip
    return torch.einsum("nb,bhw->nhw", weights, masks) / (samples * share)


@peer
def extremal_perturbation(clf, image, target, areas=(0.05, 0.15), steps=30, cells=14):
    """Extremal perturbation (Fong et al., 2019), shortened: masks of given areas that keep the logit high.

    A mask is a grid of cells x cells, enlarged, over the blurred image; Adam raises the logit and
    draws the mask's sorted values to those of a mask with an area of ones, more strongly at each step
    (at the first all values are equal, and their order would mean nothing). The map is the sum over
    areas. The paper's smoothing (a maximum over Gaussians) is replaced by interpolation, its 800
    steps by `steps`.
    """
    size, blurred = image.shape[-2:], blur(image)
    pixels = size[0] * size[1]
    order = torch.arange(pixels, device=image.device)
    wanted = torch.stack([(order >= (1 - area) * pixels).to(image.dtype) for area in areas])
    grid = image.new_zeros(len(areas), 1, cells, cells).requires_grad_()
    adam = torch.optim.Adam([grid], lr=0.3)
    for step in range(steps):
        masks = resize(grid.sigmoid(), size)
        logits = clf.network(torch.lerp(blurred, image, masks))[:, target]
        misfit = (masks.flatten(1).sort(1).values - wanted).square().mean(1)
        adam.zero_grad()
        (300 * step / steps * misfit.sum() - logits.sum()).backward()
        adam.step()
    return resize(grid.detach().sigmoid(), size).sum(0)


@peer
def xrai(clf, image, target, steps=10):
    """XRAI (Kapishnikov et al., 2019), PAIR's: segments ranked by their integrated gradients.

    steps: points of each of two paths, from the darkest and from the brightest value of the image;
    captum computes them.
    """
    method = _library("captum.attr").IntegratedGradients(clf.network)
    ends = [
        method.attribute(image, end, target, n_steps=steps, internal_batch_size=clf.batch)
        for end in (float(image.min()), float(image.max()))
    ]
    pixels, attributions = (x[0].movedim(0, -1).cpu().numpy() for x in (image, sum(ends) / 2))
    ranked = _library("saliency.core").XRAI().GetMask(pixels, None, base_attribution=attributions)
    return torch.from_numpy(ranked)[None]


METHODS = {
    "deconvolution": _captum("Deconvolution"),
    "guided_backprop": _captum("GuidedBackprop"),
    "gradient": _captum("Saliency"),
    "smoothgrad": _noisy("smoothgrad"),
    "vargrad": _noisy("vargrad"),
    "integrated_gradients": integrated_gradients,
    "deeplift": _captum("DeepLift"),
    "lrp": lrp,
    "excitation_backprop": excitation_backprop,
    "cam": cam,
    "smooth_grad_cam_plus_plus": torchcam("SmoothGradCAMpp"),
    "ss_cam": torchcam("SSCAM", num_samples=2),
    "ablation_cam": pytorch_grad_cam("AblationCAM"),
    "relevance_cam": relevance_cam,
    "occlusion": occlusion,
    "kernel_shap": kernel_shap,
    "lime": lime,
    "rise": rise,
    "extremal_perturbation": extremal_perturbation,
    "xrai": xrai,
}


@contextlib.contextmanager
def passes(clf, size=(224, 224)):
    """Count what passes through a classifier's network inside, also through copies made of it.

    Yields a Counter: "forward" and "backward", in images of `size`; a larger one counts by its
    area. A backward pass counts if it reaches the image: one that ends at the explained layer, as
    class activation maps need it, costs next to nothing.
    """
    counts = Counter()

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
