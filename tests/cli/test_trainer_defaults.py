"""What every trainer gets in addition to the user's choices."""

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
