"""Drawings of a network's predictions on a few validation pictures, after each validation of its training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch.utils.data import DataLoader

from mobilemamba.data.base import data_of
from mobilemamba.data.sampling import make_generator, seeded
from mobilemamba.errors import ConfigError
from mobilemamba.files import write_atomic
from mobilemamba.training.callbacks.validation import counts
from mobilemamba.training.contract import TaskContract

#: File in the folder of a run.
EXAMPLES_FILE = "validation_examples.png"
_GAP = 6  # pixels


class ValidationExamples(Callback):
    """Draws the targets and predictions of a few validation pictures, the same ones each time.

    ``validation_examples.png`` in the run's folder shows the last validation; TensorBoard keeps all. Tasks without
    drawings write nothing. The callback does not change the training; if it fails, a warning says so.
    """

    def __init__(self, pictures: int = 4) -> None:
        """Sets how many pictures to draw.

        Args:
            pictures: Number of validation pictures, evenly spaced from the first; 0 for none.

        Raises:
            ConfigError: If it is below 0.
        """
        if pictures < 0:
            raise ConfigError(f"ValidationExamples: pictures={pictures}: expected 0 or more")
        self.pictures = pictures

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        alone = trainer.world_size == 1 or type(trainer.strategy) is DDPStrategy  # others would wait for all processes
        if not (counts(trainer) and trainer.is_global_zero and alone and self.pictures):
            return
        if not isinstance(pl_module, TaskContract):
            return
        try:
            drawn = self._draw(trainer, pl_module)
            if not drawn:
                return
            folder, sheet, content = Path(trainer.default_root_dir), _sheet(drawn), io.BytesIO()
            sheet.save(content, "PNG")
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / EXAMPLES_FILE, content.getbuffer())
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(
                        "val/examples", np.asarray(sheet), trainer.global_step, dataformats="HWC"
                    )
        except Exception as error:  # any error at all, as it does not affect the training itself
            rank_zero_warn(f"no drawings of validation pictures: {type(error).__name__}: {error}")

    def _draw(self, trainer: Trainer, task: Any) -> list[Image.Image]:
        data = data_of(trainer)
        loader = None if data is None else data.val_dataloader()
        if not isinstance(loader, DataLoader):
            return []
        number = len(loader.dataset)  # type: ignore[arg-type]  # a map-style one
        chosen = sorted({index * number // self.pictures for index in range(self.pictures)})
        # One by one, as their sizes may differ. Random numbers that the data set draws must not affect the training.
        options: dict[str, Any] = {"collate_fn": loader.collate_fn, "generator": make_generator(0)}
        drawn = []
        eager = torch.compiler.set_stance("force_eager")  # avoids recompilation for other sizes
        with seeded(0), eager, torch.inference_mode(), trainer.precision_plugin.val_step_context():
            for batch in DataLoader(loader.dataset, 1, sampler=chosen, **options):
                if batch[0] is None:  # a picture that cannot be read
                    continue
                pair = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input((batch[0], batch[1])))
                if (picture := task.draw_example(*pair)) is None:
                    return []
                drawn.append(picture)
        return drawn


def _sheet(pictures: list[Image.Image]) -> Image.Image:
    """Stacks pictures vertically on white."""
    height = sum(picture.height for picture in pictures) + _GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height + _GAP
    return sheet
