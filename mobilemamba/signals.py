"""Signals that end a command in order: each raises what Ctrl-C does, so that whatever runs can clean up."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

#: Not all of them exist everywhere.
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Lets SIGTERM, SIGHUP and Ctrl-C raise ``KeyboardInterrupt(128 + number)``, a second one as well.

    One that is ignored when this begins, as ``nohup`` and a shell's background jobs have it, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, _: Any) -> None:
        if os.getpid() != owner:  # a forked worker of a data loader, whose end is no business of ours
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        raise KeyboardInterrupt(128 + number)

    chosen = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, interrupt) for number in chosen}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
