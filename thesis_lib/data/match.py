"""Which of a network's outputs is a dataset's class: by WNID, else by name, and never by guess."""

import copy
import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

WNID = re.compile(r"n\d{8}(?!\d)")  # WordNet's number of a class of ImageNet, first in a folder's name
IN_FRONT = re.compile(r"^(n\d{8}|\d+)[.:) ]+(?=.)")  # of "n01440764-tench", "04_toucan", "001.Albatross"


class Matched:
    """A dataset whose Samples' classes are a network's outputs.

    `categories` are the outputs' names, and `classes` says which output each class of the dataset is.
    """

    def __init__(self, dataset: Any, outputs: Sequence[int], categories: Sequence[str]):
        self.dataset, self.outputs, self.categories = dataset, list(outputs), list(categories)
        self.ids, self.seed = dataset.ids, getattr(dataset, "seed", None)
        self.classes = dict(zip(dataset.categories, self.outputs, strict=True))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        sample = copy.copy(self.dataset[i])
        sample.classes = tuple(self.outputs[c] for c in sample.classes)
        for name in ("masks", "pixel_masks", "things"):
            known = getattr(sample, name, {})
            setattr(sample, name, {self.outputs[c]: mask for c, mask in known.items()})
        return sample


def match(dataset: Any, classifier: Any) -> Any:
    """The dataset with the classifier's outputs as its classes, to compare labels with predictions.

    - By WNID where all class names begin with one ("n02110185", "n02110185-husky") and the outputs' are
      known: names that are WNIDs, ImageNet's names in any order, or 1,000 outputs without names. Any part of
      ImageNet's class folders will do. Folders 0 to 999, all of them, are ImageNet's class indices (ImageNetV2).
    - Else by name: upper and lower case, "_", "-" and blanks are the same, and where that is not enough, numbers
      in front ("04_toucan") do not count. ImageNet's outputs have all words of their class.
    - Else, where the outputs have no names and there are as many as classes, by position, as
      torchvision's ImageFolder has it, with a warning.

    No pass of the network is made where its outputs have names. Else one is, to count them.

    Args:
        dataset: has `categories` (names by class index), `ids`, a length and Samples.
        classifier: a Classifier.

    Returns:
        the dataset itself where nothing is to do: its classes are the outputs in their order, or it has none
        (a folder of pictures). Else one like it, whose `categories` are the outputs' names.

    Raises:
        ValueError: a class that is no output, or may be several; two classes that are one output.

    >>> from thesis_lib.data import CUTOUTS
    >>> from thesis_lib.data.datasets import ImageNet
    >>> from thesis_lib.data.match import match
    >>> folders = ImageNet(CUTOUTS / "ILSVRC2012")  # called by WNIDs, such as n01843383
    >>> match(folders, clf) is folders  # one class after the other, as the outputs are
    True
    >>> reverse = tl.Classifier(clf.network, layer=clf.layer, categories=clf.categories[::-1])
    >>> match(folders, reverse)[4].classes, folders[4].classes
    ((46,), (4,))
    """
    names = list(getattr(dataset, "categories", None) or [])
    own = None if classifier.categories is None else list(map(str, classifier.categories))
    if not names or names == own:
        return dataset
    count = _count(dataset, classifier) if own is None else len(own)
    if count is None:
        return dataset
    if own is None and count == 1000 and set(map(_wnid, names)) <= set(_imagenet()):
        own = list(_imagenet())
    outputs = _by_position(names, count) if own is None else _by_name(names, own, classifier)
    if own is None or outputs == list(range(count)):
        return dataset
    return Matched(dataset, outputs, own)


def _count(dataset, classifier):
    """How many outputs there are, by a pass over the first picture that can be read; None without one."""
    for i in range(len(dataset)):
        try:
            pixels = dataset[i].pixels
        except OSError:
            continue
        return classifier.logits(classifier.normalise(pixels[None])).shape[1]
    return None


def _by_position(names, count):
    """The output of each class of a network whose outputs have no names."""
    wanted = "say which output is which: tl.Classifier(..., categories=[...]), a name for each output"
    if len(names) != count:
        raise ValueError(
            f"the network has {count:,} outputs without names, the dataset {len(names):,} classes, "
            f"{_few(names)}: {wanted}"
        )
    numbers = [re.match(r"\d+", name) for name in names]
    if all(numbers) and sorted(numbers, key=lambda number: int(number[0])) != numbers:
        raise ValueError(
            f"the classes are numbered, {_few(names)}, in another order than their numbers', and the "
            f"network's {count:,} outputs have no names: {wanted}"
        )
    warnings.warn(
        f"the network's {count:,} outputs have no names: the first is taken for {names[0]!r}, the last for "
        f"{names[-1]!r}, as torchvision's ImageFolder orders folders; to be sure, {wanted}",
        stacklevel=3,
    )
    return list(range(count))


def _by_name(names, own, classifier):
    """The output of each class of a network whose outputs have names."""
    if len(set(own)) == len(own) and sorted(own) == sorted(names):
        return [own.index(name) for name in names]
    wnids, known = list(map(_wnid, names)), [None] * len(own)
    words = {}
    if any(wnids) or len(own) == 1000:
        words = _imagenet()
        known, order = _wnids_of(own, words), list(words)
        if set(known) >= set(order) and all(name.isdecimal() for name in names):
            if sorted(map(int, names)) == list(range(1000)):
                wnids = [order[int(name)] for name in names]
    ways = [_fits(wnids, ([wnid] for wnid in known))] if all(wnids) else []
    # A number is passed over on one side only: "10_dollar" is not "20_dollar".
    for of_class, of_output in ((_plain, _plain), (_bare, _plain), (_plain, _bare)):
        spelt = (
            _spellings(name, of_output) | words.get(k, set()) for name, k in zip(own, known, strict=True)
        )
        ways.append(_fits(map(of_class, names), spelt))
    for fits in ways:
        if all(len(fit) == 1 for fit in fits) and len(set().union(*fits)) == len(fits):
            return [next(iter(fit)) for fit in fits]
    raise ValueError(_fault(names, own, classifier, max(ways, key=lambda fits: sum(map(bool, fits)))))


def _fits(classes, outputs):
    """For each class's name, the outputs that have it among theirs."""
    having = {}
    for k, names in enumerate(outputs):
        for name in names:
            having.setdefault(name, set()).add(k)
    return [having.get(name, set()) for name in classes]


def _fault(names, own, classifier, fits):
    """What is wrong with outputs that fit the classes, in a sentence."""
    do = (
        "name the class folders by WNID or as the outputs are called, keep no folder there that is no class, or "
        "say what the outputs are called: tl.Classifier(..., categories=[...])"
    )
    pairs = list(zip(names, fits, strict=True))
    if lacking := [name for name, fit in pairs if not fit]:
        return (
            f"{len(lacking):,} of the dataset's {len(names):,} classes are none of the {len(own):,} outputs of "
            f"{classifier}: {_few(lacking)}; its outputs are {_few(own)}. Take a network for these classes; or {do}"
        )
    for name, fit in pairs:
        if len(fit) > 1:
            found = ", ".join(f"{k} ({own[k]!r})" for k in sorted(fit))
            return f"the class {name!r} may be any of the outputs {found} of {classifier}: {do}"
    twice = next(k for k in range(len(own)) if fits.count({k}) > 1)
    same = _few([name for name, fit in pairs if fit == {twice}])
    return f"the classes {same} are one output of {classifier}, {twice} ({own[twice]!r}): {do}"


@functools.cache
def _imagenet() -> dict[str, set[str]]:
    """{WNID: all words for it} of ImageNet-1k, in the order of the class indices."""
    from timm.data import ImageNetInfo
    from torchvision.models import VGG19_Weights

    info, names = ImageNetInfo("imagenet-1k"), VGG19_Weights.DEFAULT.meta["categories"]
    return {
        wnid: {_plain(names[k]), *_spellings(info.index_to_description(k), _plain)}
        for k, wnid in enumerate(info.label_names())
    }


def _wnids_of(own, words):
    """The WNID of each output, None where its name does not tell."""
    if any(map(_wnid, own)):
        return list(map(_wnid, own))
    from torchvision.models import VGG19_Weights

    order, names = list(words), VGG19_Weights.DEFAULT.meta["categories"]
    spelt = [_spellings(name, _plain) for name in own]
    if len(own) == len(order) and all(a & words[wnid] for a, wnid in zip(spelt, order, strict=True)):
        return order
    if sorted(own) == sorted(names):  # as they stand: "Cardigan" is a dog, "cardigan" is knitted
        return [order[names.index(name)] for name in own]
    every = list(set().union(*spelt))
    fits = dict(zip(every, _fits(every, words.values()), strict=True))
    found = [set().union(*(fits[name] for name in some)) for some in spelt]
    return [order[next(iter(fit))] if len(fit) == 1 else None for fit in found]


def _wnid(name: str) -> str | None:
    found = WNID.match(name)
    return found[0] if found else None


def _plain(name: str) -> str:
    """A name without what people spell differently: case, blanks, and how a disk stores accents."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()


def _bare(name: str) -> str:
    """The same without a number or a WNID in front."""
    return IN_FRONT.sub("", _plain(name))


def _spellings(text: str, spell: Callable) -> set[str]:
    """A name as a whole, and its parts, where it is a list of words such as "tench, Tinca tinca"."""
    return {spell(text), *map(spell, text.split(","))} - {""}


def _few(names: Sequence[str]) -> str:
    """The first names, for a sentence."""
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
