"""Compiles the kernels into one shared library. Standard library only, as nothing else may be installed yet."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE / "libmobilemamba.so"

_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-Wall", "-Wextra", "-Wvla", "-Wno-psabi", "-Wno-unknown-pragmas")
# Best first. Clones choose the instruction set at run time; OpenMP uses the runtime that PyTorch has already loaded.
_EXTRAS = (("-fopenmp", "-DMOBILEMAMBA_CLONES"), ("-fopenmp",), ("-DMOBILEMAMBA_CLONES",), ())


class CompilationError(RuntimeError):
    """There is no C compiler, or it rejects the sources."""


def fingerprint() -> str:
    """Returns a hash of the sources; a library compiled from others might lay out its structures differently."""
    sources = sorted(HERE.glob("*.[ch]"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def compile_library(target: Path = LIBRARY, flags: tuple[str, ...] = ()) -> Path:
    """Compiles all ``*.c`` beside this file, with the compiler that ``CC`` names, else ``cc``, ``gcc`` or ``clang``.

    Args:
        target: The library to write; it is replaced in one step.
        flags: Further compiler flags, e.g. a sanitizer's.

    Returns:
        ``target``.

    CompilationError: If there is no compiler, or it fails; the message is the compiler's last line.
    """
    named = os.environ.get("CC")
    compiler = shlex.split(named) if named else [c for c in map(shutil.which, ("cc", "gcc", "clang")) if c][:1]
    if sys.platform == "win32" or not compiler:
        raise CompilationError("no C compiler (gcc or clang)")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = {str(source): f"{folder}/{source.stem}.o" for source in sorted(HERE.glob("*.c"))}
        built = Path(folder) / target.name
        for extras in _EXTRAS:
            command = [*compiler, *_FLAGS, *extras, *flags, f'-DMOBILEMAMBA_FINGERPRINT="{fingerprint()}"']
            try:
                # Side by side, as each takes many seconds.
                error = _run([[*command, "-c", source, "-o", made] for source, made in objects.items()])
                error = error or _run([[*command, "-shared", *objects.values(), "-lm", "-o", str(built)]])
            except OSError as missing:
                raise CompilationError(f"{compiler[0]}: {missing.strerror}") from missing
            if error is None:
                return built.replace(target)
    raise CompilationError(error)


def _run(commands: list[list[str]]) -> str | None:
    """Runs commands side by side; returns the last line of the first that fails, or None if none does."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), commands))
    failed = (result.stderr.strip().splitlines() for result in done if result.returncode)
    return next(((lines or ["the compiler failed"])[-1] for lines in failed), None)
