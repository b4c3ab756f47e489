from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path, without_plots: None) -> Iterator[None]:
    """An empty folder for runs/, and the package for child processes; the determinism that a run sets is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(root))
    yield
    torch.use_deterministic_algorithms(False)
