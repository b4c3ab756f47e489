"""``python -m mobilemamba.ops.native`` compiles the kernels again."""

from __future__ import annotations

import sys

from mobilemamba.ops.native.build import CompilationError, compile_library

if __name__ == "__main__":
    try:
        print(compile_library())  # noqa: T201
    except (CompilationError, OSError) as error:  # OSError: the folder cannot be written
        sys.exit(f"mobilemamba's CPU kernels were not built: {error}")
