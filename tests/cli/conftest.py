import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.runs import fit


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path, without_plots: None) -> Iterator[None]:
    """An empty folder for runs/, and the package for child processes; the determinism that a run sets is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(root))
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in ``runs/default`` of an empty folder."""
    here, folder = Path.cwd(), tmp_path_factory.mktemp("trained")
    os.chdir(folder)
    fit()
    os.chdir(here)
    torch.use_deterministic_algorithms(False)
    return folder / "runs/default"


@pytest.fixture
def run(trained: Path) -> Callable[..., Path]:
    """Puts such a run into a folder, by default one that was killed after its last checkpoint."""

    def put(name: str = "default", *, finished: bool = False) -> Path:
        folder = Path("runs", name)
        shutil.copytree(trained, folder)
        if not finished:
            (folder / "results.json").unlink()
        return folder

    return put


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the command line itself."""
    lines: list[str] = []
    monkeypatch.setattr("mobilemamba.cli.lightning_cli.rank_zero_info", lines.append)
    return lines
