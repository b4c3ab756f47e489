"""Recognition of library exceptions that are caused by a user's mistake, and their one-line messages.

An exception that a library raises while the trainer, the network and the data are built is caused by the settings. One
that is raised by this package itself, or during training, may be a bug and keeps its traceback, unless it is a known
case.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import lightning
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import mobilemamba
from mobilemamba.cli.options import read_options
from mobilemamba.errors import ConfigError, MobileMambaError, is_out_of_memory, user_error
from mobilemamba.text import explain_encoding
from mobilemamba.training.callbacks.user_callbacks import complaint

_PACKAGE = Path(mobilemamba.__file__).parent
_CALLBACKS = Path(lightning.__file__).parent / "pytorch" / "callbacks"
#: Error codes of the system for an invalid path.
_OF_PATHS = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL}
#: torch's name of the signal that stopped a worker -> exit code of a command stopped by it.
_STOPS = {"Interrupt": 130, "Terminated": 143, "Hangup": 129}
#: Folders of libraries, including Python's own.
_LIBRARIES = (
    Path(lightning.__file__).parents[1],
    *(Path(sysconfig.get_path(f"{kind}lib")) for kind in ("pure", "std")),
)


@contextlib.contextmanager
def as_user_errors(options: list[str]) -> Iterator[None]:
    """Context manager that converts exceptions caused by a user's mistake to a :class:`ConfigError`."""
    try:
        yield
    except MobileMambaError:
        raise
    except Exception as error:
        stopped = re.search(r"DataLoader worker \(pid.*\) is killed by signal: (\w+)", str(error))
        if stopped and stopped[1] in _STOPS:  # a terminal sends the signal to the workers too, which may end first
            raise KeyboardInterrupt(_STOPS[stopped[1]]) from None
        if found := user_error(error):
            raise found from error
        if of_others := complaint(error):
            raise ConfigError(of_others) from error
        if _is_of_checkpoint(error) and not isinstance(
            _root(error), MisconfigurationException | torch.OutOfMemoryError
        ):
            raise ConfigError(
                f"the checkpoint is damaged or not of this Lightning: {type(error).__name__}: {_said(error)}; go "
                "on from another one by --ckpt_path"
            ) from error
        if unordered := re.search(r"(\S+) does not have a deterministic implementation", str(error)):
            raise ConfigError(
                f"trainer.deterministic=true: {unordered[1]}, an operator of this training, has no deterministic form "
                "on this device; use --trainer.deterministic warn"
            ) from error
        if not _is_mistake(error):
            raise
        raise ConfigError(_line(error, options)) from error


def _is_mistake(error: Exception) -> bool:
    root = _root(error)
    if isinstance(root, MisconfigurationException) or is_out_of_memory(root):
        return True
    frames = [frame.filename for frame in traceback.extract_tb(root.__traceback__)]
    raised_in = [Path(file) for file in frames if not file.startswith("<")][-1:]  # importlib's are <frozen ...>
    if any(frame.name == "_run_stage" for frame in traceback.extract_tb(error.__traceback__)):
        # During training, only Lightning's callbacks complain about settings: metrics that are not logged.
        return isinstance(root, RuntimeError) and any(file.is_relative_to(_CALLBACKS) for file in raised_in)
    if isinstance(root, OSError) and root.errno not in _OF_PATHS:
        return root.errno is None  # raised by Lightning itself; a full disk is not a mistake in the command line
    return any(_is_of_library(file) for file in raised_in)


def _is_of_library(file: Path) -> bool:
    return not file.is_relative_to(_PACKAGE) and any(file.is_relative_to(folder) for folder in _LIBRARIES)


def _is_of_checkpoint(error: Exception) -> bool:
    """Whether an exception was raised while Lightning restored a checkpoint."""
    frames = traceback.extract_tb(error.__traceback__)
    restoring = ("restore", "_restore", "resume_start")
    return any(f.filename.endswith("checkpoint_connector.py") and f.name.startswith(restoring) for f in frames)


def _root(error: BaseException) -> BaseException:
    """Returns the first exception of a chain, as jsonargparse wraps exceptions in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _line(error: Exception, options: list[str]) -> str:
    text, root = _said(error), _root(error)
    if is_out_of_memory(root):
        wanted = re.search(r"[Tt]ried to allocate [\d.]+ \w+", text)
        found = wanted[0].lower() if wanted else text.partition(". ")[0]
        return f"out of memory ({found}); try a smaller data.batch_size, data.img_size or network"
    if isinstance(root, ModuleNotFoundError):
        return text
    name = _named(text, options)
    return f"{name}: {text}; change it, or leave it out" if name else f"{text}; change the settings that this is about"


def _said(error: Exception) -> str:
    root = _root(error)
    said = f"{root.strerror}: {root.filename}" if isinstance(root, OSError) and root.strerror else str(root)
    text = explain_encoding(" ".join(said.split()).rstrip("."))
    if not text or isinstance(root, LookupError | AttributeError):  # their message is only a name
        text = f"{type(root).__name__} {text}".strip()
    installs = isinstance(root, ModuleNotFoundError) and "pip install" not in text
    return f"{text}; install it first" if installs else text


def _named(text: str, options: list[str]) -> str:
    """Returns ``name=value`` of the option that a message is certainly about; empty if there is none.

    The message must contain both next to each other, or quote the value or the name of exactly one option.
    """
    given = {name[2:]: value for name, value, _ in read_options(options) if name.startswith("--") and value}
    last = {name: re.escape(name.removesuffix("+").rpartition(".")[2]) for name in given}
    for said in (
        lambda name, value: rf"\b{name}\W{{1,3}}{value}(?!\w)",
        lambda _, value: rf"['\"`]{value}['\"`]",
        lambda name, _: rf"`{name}`",
    ):
        found = [name for name in given if re.search(said(last[name], re.escape(given[name])), text)]
        if len(found) == 1:
            return f"{found[0]}={given[found[0]]}"
    return ""
