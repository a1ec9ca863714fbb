"""MSG-CAM and its peers: saliency maps of a master's thesis, made reproducible.

    import thesis_lib as tl
    clf = tl.load_classifier("vgg19_glyphs")
    maps = tl.METHODS["msg_cam"](clf, images)
"""

import importlib

_HOMES = {
    "Classifier": "classifier", "load_classifier": "data.models", "evaluate": "experiments",
    "insertion_deletion": "experiments", "pointing_game": "experiments", "randomize": "experiments",
    "counting": "kernels", "METHODS": "methods", "enhance": "methods", "sess": "methods",
    "check_parameters": "parameters",
}  # fmt: skip

__all__ = [
    "METHODS",
    "Classifier",
    "check_parameters",
    "counting",
    "enhance",
    "evaluate",
    "explore",
    "insertion_deletion",
    "kernels",
    "load_classifier",
    "peers",
    "plots",
    "pointing_game",
    "randomize",
    "report",
    "sess",
]


def __getattr__(name):
    """Imports what is asked for, when it is: the doctor must run where packages are missing."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"thesis_lib.{_HOMES[name]}"), name)
    try:
        return importlib.import_module(f"thesis_lib.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"thesis_lib.{name}":
            raise
        raise AttributeError(f"thesis_lib has no {name!r}; it has {', '.join(__all__)}") from None


def __dir__():
    return __all__
