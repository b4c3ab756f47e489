"""Data modules: embedded samples, ImageNet-1k, ADE20K, COCO, and the user's own pictures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilemamba.data.modules import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # Imported at first use, as they load Lightning, which reading a few pictures does not need. All at once, as the
    # command line finds a class by its name among those that are loaded. `import *` asks for `__all__`.
    if name != "__all__" and not name[:1].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mobilemamba.data.modules"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
