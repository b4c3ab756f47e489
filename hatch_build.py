"""Compiles the CPU kernels while the package is built or installed, if there is a C compiler; else leaves them out."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileKernels(BuildHookInterface):
    """Puts the shared library beside its sources; a wheel that holds it is tagged with the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        path = Path(self.root) / "mobilemamba" / "ops" / "native" / "build.py"
        spec = importlib.util.spec_from_file_location("build_kernels", path)  # the package itself would import torch
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        try:
            build.compile_library()
        except (build.CompilationError, OSError) as error:  # OSError: the folder cannot be written
            self.app.display_warning(f"CPU kernels not compiled, plain PyTorch will do their work: {error}")
            return
        build_data["artifacts"].append(f"/{build.LIBRARY.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"  # ctypes loads it: no Python or PyTorch version matters
