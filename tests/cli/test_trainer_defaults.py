"""What every trainer gets in addition to the user's choices."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy

from mobilemamba.cli.trainer_defaults import trainer_options
from mobilemamba.training.callbacks.sync_norms import SyncNorms


@pytest.mark.parametrize("chosen", [None, MixedPrecision("bf16-mixed", "cpu"), [MixedPrecision("bf16-mixed", "cpu")]])
def test_norms_are_synchronised_with_their_activations(chosen: Any) -> None:
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "sync_batchnorm": True}
    options = trainer_options("fit", SimpleNamespace(**settings, plugins=chosen))
    trainer = Trainer(accelerator="cpu", strategy="ddp", **settings, **options)
    assert isinstance(trainer.strategy, DDPStrategy)
    assert type(trainer.strategy._layer_sync) is SyncNorms
    assert trainer.precision == ("32-true" if chosen is None else "bf16-mixed")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_file_or_a_pipe_gets_no_bar(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    given = {"logger": False, "enable_model_summary": None, "sync_batchnorm": False}
    found = [trainer_options("fit", SimpleNamespace(**given, enable_progress_bar=bar)) for bar in (None, True)]
    assert found == [
        {"enable_model_summary": False} | ({} if terminal else {"enable_progress_bar": False}),
        {"enable_model_summary": False},
    ]
