"""Saving of a run's configuration in its folder, and in every checkpoint."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from mobilemamba.cli.resume import RUN_CONFIG
from mobilemamba.files import write_text_atomic
from mobilemamba.training.callbacks.trainer_state import is_trial


class SaveFitConfig(SaveConfigCallback):
    """Writes ``config.yaml`` to the run folder when the training starts.

    Not earlier, as resuming may still fail and must then leave the run unchanged; and not for ``validate``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None: ...

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        if trainer.is_global_zero and not is_trial(trainer):
            write_text_atomic(Path(trainer.default_root_dir) / self.config_filename, self._text)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration to the checkpoint, which may be moved out of its run's folder."""
        checkpoint[RUN_CONFIG] = self._text

    def __getstate__(self) -> dict[str, Any]:
        """Returns the text without the parser, which cannot be copied into the processes that ``ddp_spawn`` starts."""
        return {**vars(self), "_text": self._text, "parser": None, "config": None}

    @cached_property
    def _text(self) -> str:
        config = self.config.clone()
        config.ckpt_path = None  # as resuming is not part of the run's configuration
        if config.name is not None:  # the folder follows from the name, also in a new run from this file
            config.trainer.default_root_dir = None
        return self.parser.dump(config, skip_none=False)
