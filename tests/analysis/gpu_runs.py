"""Runs of ``mobilemamba gpu`` on a CPU that plays a GPU, in tiny sizes."""

from pathlib import Path

import pytest
import torch

from mobilemamba.analysis.gpu.run import Run
from mobilemamba.analysis.gpu.sizes import QUICK, Sizes
from mobilemamba.models.inference import graphs
from tests.models.fake_cuda import FakeCuda


def new_run(tmp_path: Path, seconds: float = 60, sizes: Sizes = QUICK, goes_on: bool = False) -> Run:
    return Run(torch.device("cpu"), sizes, tmp_path / "run.json", seconds, goes_on)


def play_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Gives the CPU CUDA graphs."""
    fake = FakeCuda()
    monkeypatch.setattr(graphs, "cuda", fake)
    monkeypatch.setattr(Run, "has_graphs", True)
    return fake
