"""What every trainer gets in addition to the user's choices."""

import pytest
import torch

from mobilemamba.cli.trainer_defaults import leave_memory_unfilled


@pytest.mark.parametrize(("device", "fills"), [("cpu", True), ("cuda:1", False)])
def test_a_gpu_does_not_fill_memory(device: str, fills: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    leave_memory_unfilled(torch.device(device))
    assert torch.utils.deterministic.fill_uninitialized_memory is fills
