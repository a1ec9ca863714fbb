"""MSG-CAM and its peers: saliency maps of a master's thesis, made reproducible.

import thesis_lib as tl
clf = tl.load_classifier("vgg19_cutouts")
maps = tl.METHODS["msg_cam"](clf, images)
"""

import importlib

_HOMES = {
    "Classifier": "classifier", "counting": "counts", "load_classifier": "data.models",
    "open_dataset": "data.registry", "METHODS": "methods", "enhance": "methods", "sess": "methods",
    "compare": "pages.compare", "METRICS": "metrics", "insertion_deletion": "metrics", "pointing_game": "metrics",
    "randomize": "metrics", "evaluate": "runs.evaluate", "recorded": "runs.record",
    "check_parameters": "pages.parameters",
}  # fmt: skip
_MODULES = {
    "kernels": "kernels", "peers": "peers", "explore": "pages.explore", "plots": "pages.plots",
    "report": "pages.report",
}  # fmt: skip

__all__ = sorted({*_HOMES, *_MODULES})


def __getattr__(name):
    """Imports what is asked for, when it is: the doctor must run where packages are missing."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"thesis_lib.{_HOMES[name]}"), name)
    try:
        return importlib.import_module(f"thesis_lib.{_MODULES.get(name, name)}")
    except ModuleNotFoundError as error:
        if name in _MODULES and not str(error.name).startswith("thesis_lib"):
            package = str(error.name).partition(".")[0]
            said = f"tl.{name} needs {package}: pip install {package}, or this library with its extra [book]"
            raise ImportError(said, name=error.name) from error
        if error.name != f"thesis_lib.{name}":
            raise
        raise AttributeError(f"thesis_lib has no {name!r}; it has {', '.join(__all__)}") from None


def __dir__():
    return __all__
