"""Data modules: the embedded sample, ImageNet-1k, and any own folder of pictures. Depends on nothing above it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mobilemamba.data.sampling import IGNORED

if TYPE_CHECKING:
    from mobilemamba.data.modules import DataModule, FashionMNISTSample, ImageDataModule, ImageFolder, ImageNet

__all__ = ["IGNORED", "DataModule", "FashionMNISTSample", "ImageDataModule", "ImageFolder", "ImageNet"]


def __getattr__(name: str) -> Any:
    # At the first use, and then all of them: they load Lightning, which who reads a few pictures does not need, and
    # the command line finds a class by its name among those that are loaded.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = import_module("mobilemamba.data.modules")
    globals().update({known: getattr(modules, known) for known in __all__ if known != "IGNORED"})
    return globals()[name]
