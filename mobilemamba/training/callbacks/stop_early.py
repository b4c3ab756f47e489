"""The end of a training that gets no better."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from mobilemamba.training.contract import monitor_of


class StopEarly(EarlyStopping):
    """Lightning's EarlyStopping by the score that the best validation is chosen by, whatever the task's is."""

    def __init__(self, patience: int = 10, min_delta: float = 0.0) -> None:
        """Sets how long to wait.

        Args:
            patience: Validations without a better score after which the training ends.
            min_delta: By how much a score has to be better to count as such.
        """
        super().__init__("val/loss", min_delta, patience)
        self._options = (min_delta, patience)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        monitor, mode = monitor_of(pl_module)
        super().__init__(monitor, *self._options, mode=mode)
        super().setup(trainer, pl_module, stage)
