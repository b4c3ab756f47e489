"""The command line with rows that take no time, as a process of its own."""

import sys
from pathlib import Path

from mobilemamba.sweep import row
from mobilemamba_command import run

FAKE = Path(__file__).with_name("fake_child.py")


def fake_command(run_dir: Path) -> list[str]:
    return [sys.executable, str(FAKE), str(run_dir)]


if __name__ == "__main__":
    row._command = fake_command
    run()
