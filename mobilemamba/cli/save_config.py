"""The configuration that a run keeps: in its folder, and in every checkpoint, which may leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from mobilemamba.cli.resume import RUN_CONFIG
from mobilemamba.files import write_text_atomic
from mobilemamba.training.callbacks.validation import is_trial


class SaveFitConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder once the training starts.

    Not before, as a resume may fail until then and must leave the run as it was; and not for a ``validate``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None: ...

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves."""
        if trainer.is_global_zero and not is_trial(trainer):
            write_text_atomic(Path(trainer.default_root_dir) / self.config_filename, self._text())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes it into the checkpoint too, which may leave its run's folder."""
        checkpoint[RUN_CONFIG] = self._text()

    def _text(self) -> str:
        config = self.config.clone()
        config.ckpt_path = None  # the configuration of the run, not of this going on with it
        if config.name is not None:  # then the folder follows from it, also for a run that starts from this file
            config.trainer.default_root_dir = None
        return self.parser.dump(config, skip_none=False)
