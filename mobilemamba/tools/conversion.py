"""Checkpoints into files of our format."""

from __future__ import annotations

from pathlib import Path

from mobilemamba.models import convert
from mobilemamba.text import printable


def convert_checkpoint(source: Path, target: Path, *, model: str | None = None) -> None:
    """Convert a checkpoint, such as the authors' release, to .safetensors with this package's names.

    Args:
        source: A .pth, .safetensors or .ckpt file; the authors' format or ours, fused or not.
        target: The .safetensors file to write.
        model: The model it is of, e.g. mobilemamba_s6; not needed for files that say so themselves.
    """
    convert(source, target, model)
    print(f"wrote {printable(target)}")
