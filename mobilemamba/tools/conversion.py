"""The ``convert`` command: conversion of checkpoints to .safetensors files."""

from __future__ import annotations

from pathlib import Path

from mobilemamba.models import convert
from mobilemamba.text import printable


def convert_checkpoint(source: Path, target: Path, *, model: str | None = None) -> None:
    """Convert a checkpoint, such as the authors' release, to .safetensors with this package's names.

    Args:
        source: A .pth, .safetensors or .ckpt file, in the authors' format or ours, norms folded or not.
        target: The .safetensors file to write.
        model: Name of the network, e.g. mobilemamba_s6; not needed for files that contain it.
    """
    convert(source, target, model)
    print(f"wrote {printable(target)}")
