"""New memory without a first value."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mobilemamba.training.callbacks import UnfilledMemory


@pytest.mark.parametrize(("device", "fills"), [("cpu", True), ("cuda:1", False)])
def test_a_gpu_does_not_fill_memory(device: str, fills: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    UnfilledMemory().setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert torch.utils.deterministic.fill_uninitialized_memory is fills
