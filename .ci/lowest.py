"""Prints pip constraints that pin every dependency of pyproject.toml to the lowest version it admits."""

import re
import tomllib
from pathlib import Path

for requirement in tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]:
    if found := re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement):
        print(f"{found[1]}=={found[2]}")
