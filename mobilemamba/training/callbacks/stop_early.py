"""Early stopping of a training that no longer improves."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from mobilemamba.training.contract import monitor_of


class StopEarly(EarlyStopping):
    """Lightning's EarlyStopping, on the score that selects the best validation of the task."""

    def __init__(self, patience: int = 10, min_delta: float = 0.0) -> None:
        """Sets how long to wait for an improvement.

        Args:
            patience: Number of validations without improvement after which the training ends.
            min_delta: Smallest change of the score that counts as an improvement.
        """
        super().__init__("val/loss", min_delta, patience)
        self._options = (min_delta, patience)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        monitor, mode = monitor_of(pl_module)
        super().__init__(monitor, *self._options, mode=mode)
        super().setup(trainer, pl_module, stage)
