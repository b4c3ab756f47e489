"""Atomic writing of checkpoints."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch.serialization import get_unsafe_globals_in_checkpoint

from mobilemamba.files import link_atomic, write_atomic
from mobilemamba.training.checkpoint_files import LAST, PREVIOUS, SAVED_AT


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint IO with atomic replacement: at any moment a file is the old or the new one, never broken.

    This holds on a full disk, too. Each checkpoint contains the time it was written, which is later than that of the
    checkpoint before it even if the clock has been set back. ``previous.ckpt`` is the ``last.ckpt`` before the current
    one, if this process has written or read it, so that a broken file never replaces an intact one. Warns once of a
    state that no resumed run could read.
    """

    def __init__(self) -> None:
        self._sound: set[Path] = set()
        self._looked_at = False
        self._latest = 0.0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a temporary file beside ``path`` and renames it.

        Raises:
            OSError: If the folder is not writable or the disk is full; names ``path``, which is then unchanged.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target, buffer = Path(path).absolute(), io.BytesIO()
        self._latest = max(time.time(), self._latest + 0.001)
        torch.save({**checkpoint, SAVED_AT: self._latest}, buffer)
        if "callbacks" in checkpoint and not self._looked_at:
            self._looked_at = True
            buffer.seek(0)
            if types := get_unsafe_globals_in_checkpoint(buffer):
                rank_zero_warn(f"{target} {cannot_resume(types)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, buffer.getbuffer(), before=lambda: self._keep(target))
        self._sound.add(target)

    def load_checkpoint(self, path: str | Path, *options: Any, **named: Any) -> dict[str, Any]:
        content = super().load_checkpoint(path, *options, **named)
        self._sound.add(Path(path).absolute())
        saved_at = content.get(SAVED_AT)
        self._latest = saved_at if isinstance(saved_at, float) else 0.0
        return content

    def _keep(self, target: Path) -> None:
        if target.name == LAST and target in self._sound and target.exists():
            link_atomic(target, target.with_name(PREVIOUS))


def cannot_resume(types: list[str]) -> str:
    """Returns the end of a message: why no training can resume from a checkpoint with these types, and what to do."""
    return (
        f"holds objects of {', '.join(types)}, which no resume reads, as that would run code; keep plain values and "
        "tensors in each state_dict(), or allow the types by torch.serialization.add_safe_globals"
    )
