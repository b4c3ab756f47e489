"""Which of the exceptions of libraries are a user's mistake, and the line that such a one becomes.

A library's complaint while the trainer, the network and the data are being built from the settings is about a setting.
What is raised while a network trains may be a bug, and keeps its traceback, unless it is known.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import lightning
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import mobilemamba
from mobilemamba.cli.parser import given_settings
from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.messages import user_error

#: What libraries raise over an argument; others (``KeyError``, ``AttributeError``) are rather bugs.
_COMPLAINTS = (ValueError, TypeError, ImportError, RuntimeError, NotImplementedError, ArithmeticError, AssertionError)
#: What the system says of a path that cannot be; a full disk, say, is no mistake of the command line.
_OF_PATHS = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL}
#: The parts of this package that hand a user's settings over to libraries.
_HAND_OVER = ("cli/", "tasks/", "models/create.py")
_PACKAGE = Path(mobilemamba.__file__).parent
_CALLBACKS = str(Path(lightning.__file__).parent / "pytorch" / "callbacks")


@contextlib.contextmanager
def as_user_errors(options: list[str]) -> Iterator[None]:
    """Raises what stems from a user's mistake as a :class:`ConfigError`, and everything else as it is.

    Args:
        options: Of the command, to name the one that is meant.
    """
    try:
        yield
    except MobileMambaError:
        raise
    except Exception as error:
        if found := user_error(error):
            raise found from error
        if _is_of_checkpoint(error) and not isinstance(
            _root(error), MisconfigurationException | torch.OutOfMemoryError
        ):
            raise ConfigError(
                f"the checkpoint is damaged or not of this Lightning: {type(error).__name__}: {_line(error, [])}; go "
                "on from another one by --ckpt_path"
            ) from error
        if not _is_mistake(error):
            raise
        raise ConfigError(_line(error, options)) from error


def _is_mistake(error: Exception) -> bool:
    root = _root(error)
    if isinstance(root, MisconfigurationException | torch.OutOfMemoryError):
        return True
    frames = traceback.extract_tb(root.__traceback__)
    training = any(frame.name == "_run_stage" for frame in traceback.extract_tb(error.__traceback__))
    if training or not frames:  # there Lightning's callbacks complain of metrics that nobody logs
        return bool(frames) and isinstance(root, RuntimeError) and frames[-1].filename.startswith(_CALLBACKS)
    own = [Path(frame.filename) for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    if own and Path(frames[-1].filename).is_relative_to(_PACKAGE):
        return False
    handed_over = not own or own[-1].relative_to(_PACKAGE).as_posix().startswith(_HAND_OVER)
    return handed_over and (isinstance(root, _COMPLAINTS) or getattr(root, "errno", None) in _OF_PATHS)


def _is_of_checkpoint(error: Exception) -> bool:
    """Whether Lightning was putting back what a checkpoint says."""
    frames = traceback.extract_tb(error.__traceback__)
    restoring = ("restore", "_restore", "resume_start")
    return any(f.filename.endswith("checkpoint_connector.py") and f.name.startswith(restoring) for f in frames)


def _root(error: BaseException) -> BaseException:
    """The first of a chain, which jsonargparse wraps into its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _line(error: Exception, options: list[str]) -> str:
    root = _root(error)
    said = f"{root.strerror}: {root.filename}" if isinstance(root, OSError) else str(root)
    text = " ".join(said.split()) or type(root).__name__
    if isinstance(root, ModuleNotFoundError) and "pip install" not in text:
        text += "; install it first"
    if isinstance(root, torch.OutOfMemoryError):
        text = f"{text.partition('. ')[0]}; try a smaller data.batch_size or data.img_size"
    name = _named(f"{text} {error}", options)
    return f"{name}: {text}" if name and name not in text else text


def _named(text: str, options: list[str]) -> str:
    """The option that a complaint is about: one of its words is the option's last part or its value."""
    by_name = [name for name in given_settings(options) if _has(text, name.rpartition(".")[2])]
    by_value = [
        name.removeprefix("--")
        for option, after in itertools.pairwise([*options, ""])
        for name, equals, value in [option.partition("=")]
        if option.startswith("--") and _has(text, value if equals else after)
    ]
    return next(iter([*by_name, *by_value]), "")


def _has(text: str, word: str) -> bool:
    return len(word) > 1 and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
