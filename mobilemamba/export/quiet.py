"""Keeps converters and runtimes quiet: their progress, warnings and reports to their makers."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

#: File descriptors of standard output and error, to which native code writes without Python.
_DESCRIPTORS = (1, 2)


def load_onnxruntime() -> Any:
    """Imports ONNX Runtime with its telemetry, which would identify this machine to Microsoft, switched off."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads this when it is imported
    import onnxruntime

    return onnxruntime


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context that hides progress, versions and warnings about old operators; errors are raised as usual."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "wb", buffering=0))  # noqa: PTH123
        for descriptor in _DESCRIPTORS:
            with contextlib.suppress(OSError):  # they may be closed, as in some services
                kept = os.dup(descriptor)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, descriptor)
                os.dup2(nowhere.fileno(), descriptor)
        words = io.StringIO()  # loggers created in here keep it
        stack.enter_context(contextlib.redirect_stdout(words))
        stack.enter_context(contextlib.redirect_stderr(words))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        yield
