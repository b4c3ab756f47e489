import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[None]:
    """An empty folder for runs/, and the package for child processes; the determinism that a run sets is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(root))
    # For those of several processes: below the ports that the system gives out meanwhile, another one for each worker.
    monkeypatch.setenv("MASTER_PORT", str(20_000 + os.getpid() % 10_000))
    yield
    torch.use_deterministic_algorithms(False)
