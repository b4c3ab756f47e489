"""Keeps converters and runtimes quiet: their progress, warnings and reports to their makers."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

#: Standard output and error, by which their native parts go around Python.
_DESCRIPTORS = (1, 2)


def load_onnxruntime() -> Any:
    """The package, which reports its use to Microsoft, and keeps a number for this machine, unless told otherwise."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # which it reads as it is imported
    import onnxruntime

    return onnxruntime


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lets nothing of progress, versions and older operators reach the screen; errors are raised as ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "wb", buffering=0))  # noqa: PTH123
        for descriptor in _DESCRIPTORS:
            with contextlib.suppress(OSError):  # closed, as some services have them
                kept = os.dup(descriptor)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, descriptor)
                os.dup2(nowhere.fileno(), descriptor)
        words = io.StringIO()  # loggers that begin in here keep it
        stack.enter_context(contextlib.redirect_stdout(words))
        stack.enter_context(contextlib.redirect_stderr(words))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
