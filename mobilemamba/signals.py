"""Orderly termination by signals: each raises the same exception as Ctrl-C, so that running code can clean up."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

#: Signals that stop a command; not all of them exist on every system.
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Context manager in which SIGTERM, SIGHUP and Ctrl-C raise ``KeyboardInterrupt(128 + number)``, even repeatedly.

    Signals that are already ignored, as by ``nohup`` or in a shell's background jobs, stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, _: Any) -> None:
        if os.getpid() != owner:  # a forked worker of a data loader, which should end as usual
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
