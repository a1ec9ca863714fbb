"""Methods of Captum: gradients and relevance down to the pixels, and what hides parts of the picture."""

import torch
from skimage.segmentation import slic
from torch import Tensor, nn

from thesis_lib.checks import checked, number, whole
from thesis_lib.classifier import Classifier
from thesis_lib.peers.base import PEERS, library, peer, pixelwise, probability

# Backpropagation


@PEERS.entry("Gradient", family="backpropagation", source="Simonyan et al., ICLR workshop 2014")
@pixelwise
def gradient(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """The gradient of the class's logit at the picture (Simonyan et al., 2014)."""
    return library("captum.attr").Saliency(clf.network).attribute(image, target=target, abs=False)


@PEERS.entry("Deconvolution", chinese="反卷积", family="backpropagation", source="Zeiler & Fergus, ECCV 2014")
@pixelwise
def deconvolution(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Deconvolution (Zeiler & Fergus, 2014): a ReLU lets gradients above 0 pass, whatever its input."""
    return library("captum.attr").Deconvolution(clf.network).attribute(image, target=target)


@PEERS.entry(
    "Guided backpropagation",
    chinese="导向反向传播",
    family="backpropagation",
    source="Springenberg et al., ICLR workshop 2015",
)
@pixelwise
def guided_backprop(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Guided backpropagation (Springenberg et al., 2015): gradients above 0 pass where the input was too."""
    return library("captum.attr").GuidedBackprop(clf.network).attribute(image, target=target)


def _over_noise(kind, clf, image, target, samples, noise):
    """Captum's statistic `kind` of the gradients at noisy copies of the image."""
    attr = library("captum.attr")
    return attr.NoiseTunnel(attr.Saliency(clf.network)).attribute(
        image, kind, samples, clf.batch, noise * float(image.max() - image.min()),
        target=target, abs=False,
    )  # fmt: skip


@PEERS.entry("SmoothGrad", family="backpropagation", source="Smilkov et al., arXiv 1706.03825, 2017")
@pixelwise
@checked(samples=(whole, 1), noise=(number, 0))
def smoothgrad(
    clf: Classifier, image: Tensor, target: Tensor, samples: int = 16, noise: float = 0.15
) -> Tensor:
    """SmoothGrad (Smilkov et al., 2017): the mean of the gradient over noisy images.

    samples: noisy copies. noise: their standard deviation, as a share of the image's range.
    """
    return _over_noise("smoothgrad", clf, image, target, samples, noise)


@PEERS.entry("VarGrad", family="backpropagation", source="Adebayo et al., arXiv 1810.03307, 2018")
@pixelwise
@checked(samples=(whole, 2), noise=(number, 0))
def vargrad(clf: Classifier, image: Tensor, target: Tensor, samples: int = 16, noise: float = 0.15) -> Tensor:
    """VarGrad (Adebayo et al., 2018): the gradient's variance over noisy images.

    samples, noise: as `smoothgrad`.
    """
    return _over_noise("vargrad", clf, image, target, samples, noise)


@PEERS.entry("Integrated gradients", family="backpropagation", source="Sundararajan et al., ICML 2017")
@pixelwise
@checked(steps=(whole, 1))
def integrated_gradients(clf: Classifier, image: Tensor, target: Tensor, steps: int = 20) -> Tensor:
    """Integrated gradients (Sundararajan et al., 2017) from the mean colour.

    steps: points of the path, those of Gauss and Legendre's quadrature.
    """
    method = library("captum.attr").IntegratedGradients(clf.network)
    return method.attribute(image, 0, target, n_steps=steps, internal_batch_size=clf.batch)


@PEERS.entry("DeepLIFT", family="backpropagation", source="Shrikumar et al., ICML 2017")
@pixelwise
def deeplift(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """DeepLIFT (Shrikumar et al., 2017), the rescale rule, from the mean colour."""
    return library("captum.attr").DeepLift(clf.network).attribute(image, target=target)


@PEERS.entry("LRP", family="backpropagation", source="Bach et al., PLOS ONE 2015")
@pixelwise
@checked(gamma=(number, 0))
def lrp(clf: Classifier, image: Tensor, target: Tensor, gamma: float = 0.25) -> Tensor:
    """Layer-wise relevance propagation (Bach et al., 2015): rule epsilon, gamma in convolutions.

    gamma: how much more a convolution's positive weights count; 0 leaves the epsilon rule alone,
    which is gradient times input in a network of ReLUs. Layers that captum has no rule for, such as
    a Transformer's, raise TypeError.
    """
    rules = library("captum.attr._utils.lrp_rules")
    for module in clf.network.modules():
        if isinstance(module, nn.Conv2d) and gamma:
            module.rule = rules.GammaRule(gamma)
        elif isinstance(module, (nn.Flatten, nn.Identity)):  # captum knows no rule for them
            module.rule = rules.EpsilonRule()
    return library("captum.attr").LRP(clf.network).attribute(image, target=target)


# Perturbation


@PEERS.entry("Occlusion", family="perturbation", source="Zeiler & Fergus, ECCV 2014")
@peer
@checked(window=(whole, 1), stride=(whole, 1))
def occlusion(clf: Classifier, image: Tensor, target: Tensor, window: int = 48, stride: int = 24) -> Tensor:
    """Occlusion (Zeiler & Fergus, 2014): how much a hidden square takes off the probability.

    window: the square's side, in pixels. stride: pixels from one square to the next.
    """
    whole(window, "window", 1, min(image.shape[-2:]))
    whole(stride, "stride", 1, window)  # else pixels stay seen
    method = library("captum.attr").Occlusion(probability(clf, target))
    size = (3, window, window)
    return method.attribute(
        image, size, (3, stride, stride), perturbations_per_eval=clf.batch
    )[:, 0].relu()  # fmt: skip


def _superpixels(clf, image, count):
    """About `count` areas of even colour: int64 (1, 1, H, W)."""
    pixels = clf.denormalise(image)[0].clamp(0, 1).permute(1, 2, 0).cpu().double().numpy()
    areas = slic(pixels, count, start_label=0, channel_axis=-1)
    return torch.from_numpy(areas)[None, None].to(image.device)


@PEERS.entry("Kernel SHAP", family="perturbation", source="Lundberg & Lee, NeurIPS 2017")
@peer
@checked(samples=(whole, 1), areas=(whole, 1))
def kernel_shap(
    clf: Classifier, image: Tensor, target: Tensor, samples: int = 100, areas: int = 40
) -> Tensor:
    """Kernel SHAP (Lundberg & Lee, 2017): Shapley values of superpixels, by regression.

    samples: altered pictures. areas: superpixels, about.
    """
    method = library("captum.attr").KernelShap(probability(clf, target))
    mask = _superpixels(clf, image, areas)
    return method.attribute(
        image, feature_mask=mask, n_samples=samples, perturbations_per_eval=clf.batch
    )[:, 0].relu()  # fmt: skip


@PEERS.entry("LIME", family="perturbation", source="Ribeiro et al., KDD 2016")
@peer
@checked(samples=(whole, 1), areas=(whole, 1))
def lime(clf: Classifier, image: Tensor, target: Tensor, samples: int = 100, areas: int = 40) -> Tensor:
    """LIME (Ribeiro et al., 2016): a linear model of the probability by superpixels shown.

    samples, areas: as `kernel_shap`.
    """
    ridge = library("captum._utils.models.linear_model").SkLearnRidge(alpha=1.0)
    method = library("captum.attr").Lime(probability(clf, target), ridge)
    mask = _superpixels(clf, image, areas)
    return method.attribute(
        image, feature_mask=mask, n_samples=samples, perturbations_per_eval=clf.batch
    )[:, 0].relu()  # fmt: skip
