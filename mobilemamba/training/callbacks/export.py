"""Export of the best checkpoint as a single file for use elsewhere."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from mobilemamba.models import convert, read_card
from mobilemamba.models.weights_file import first_line
from mobilemamba.training.callbacks.at_end import AtEnd
from mobilemamba.training.callbacks.checkpoints import EXPORTED, best_checkpoint


class ExportBest(AtEnd):
    """Writes ``best.safetensors`` at the end: the better network of ``best.ckpt``, raw or averaged.

    The file's header contains architecture, class names and preprocessing, so that ``predict``, ``validate``,
    ``load_weights`` and ``load_network`` need nothing else. If the file cannot be written, a line says why, and the
    training is not affected.
    """

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Converts the file of :class:`~mobilemamba.training.callbacks.checkpoints.BestCheckpoint`."""
        best = best_checkpoint(trainer)
        if best is None:
            return
        best.settle(trainer, pl_module)
        if not trainer.is_global_zero or not best.best_model_path:
            return
        target = Path(trainer.default_root_dir) / EXPORTED
        try:
            if read_card(best.path) is None:
                rank_zero_info(f"no {EXPORTED}: checkpoints of a {type(pl_module).__name__} have no model card")
                return
            convert(best.path, target, verbose=False)
        except Exception as error:  # any error at all, as the results must still be written
            rank_zero_warn(f"no {EXPORTED}: {first_line(error)}; the weights are in {best.path}")
            return
        rank_zero_info(f"best weights, with class names and preprocessing: {target}")
