"""The best checkpoint as one file for use elsewhere."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from mobilemamba.models import convert


class ExportBest(Callback):
    """Writes ``best.safetensors`` at the end: the better network of the best checkpoint, raw or averaged.

    Architecture, class names and the pictures' preprocessing stand in the file's header, so that ``predict``,
    ``validate``, ``load_weights`` and ``load_network`` need nothing else.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Converts the best checkpoint that a :class:`ModelCheckpoint` kept."""
        if not trainer.is_global_zero or trainer.interrupted:
            return
        kept = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
        if not kept or not kept[0]:
            return
        target = Path(trainer.default_root_dir) / "best.safetensors"
        convert(kept[0], target, verbose=False)
        rank_zero_info(f"weights of the best epoch, with class names and preprocessing: {target}")
