"""One line a run says which kernels run."""

import logging

import pytest
from lightning import LightningModule, Trainer
from torch import nn

from mobilemamba.layers.ss2d import SS2D
from mobilemamba.ops.native import library
from mobilemamba.training.callbacks import SayKernels

pytestmark = pytest.mark.kernels


class Module(LightningModule):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """What is said at the starts of a run's loops."""
    monkeypatch.setattr(library, "why_not", lambda: "switched off")

    def run(layer: nn.Module, *starts: str) -> list[str]:
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        callback = SayKernels()
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
            for start in starts:
                getattr(callback, f"on_{start}_start")(trainer, Module(layer))
        return caplog.messages

    return run


@pytest.mark.parametrize("starts", [("fit", "validation"), ("validation",), ("test",)], ids="-".join)
def test_once_a_run(said, starts: tuple[str, ...]) -> None:
    assert said(SS2D(4), *starts) == ["kernels: plain PyTorch (switched off), 1 thread"]


def test_nothing_of_a_network_without_our_layers(said) -> None:
    assert said(nn.Linear(2, 2), "fit") == []


def test_in_the_network_s_precision(said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "why_not", lambda: None)
    assert said(SS2D(4).double(), "fit") == [
        "kernels: plain PyTorch (the compiled kernels compute in single precision), 1 thread"
    ]
