"""Drawings of pictures that a network learns from, and of its predictions on others after each validation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch.utils.data import DataLoader

from mobilemamba.data.base import data_of
from mobilemamba.data.sampling import make_generator, seeded
from mobilemamba.errors import ConfigError
from mobilemamba.files import write_atomic
from mobilemamba.training.callbacks.trainer_state import is_recorded
from mobilemamba.training.contract import TaskContract

_GAP, _MOST_WIDTH = 6, 1600  # pixels of a sheet


class _Examples(Callback):
    """Base class of callbacks that draw pictures into a file of the run's folder and into TensorBoard.

    Tasks without drawings write nothing. The callback does not change the training; if it fails, a warning says so.

    Attributes:
        file: Name of the file.
        tag: Name in TensorBoard.
    """

    file: ClassVar[str]
    tag: ClassVar[str]

    def __init__(self, pictures: int = 8) -> None:
        """Sets how many pictures to draw.

        Args:
            pictures: Number of pictures; 0 for none.

        Raises:
            ConfigError: If it is below 0.
        """
        if pictures < 0:
            raise ConfigError(f"{type(self).__name__}: pictures={pictures}: expected 0 or more")
        self.pictures = pictures

    def _show(self, trainer: Trainer, task: Any, draw: Callable[[], list[Image.Image]]) -> None:
        if not (is_recorded(trainer) and trainer.is_global_zero and self.pictures and isinstance(task, TaskContract)):
            return
        try:
            if not (drawn := draw()):
                return
            folder, sheet, content = Path(trainer.default_root_dir), _sheet(drawn), io.BytesIO()
            sheet.save(content, "PNG")
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / self.file, content.getbuffer())
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(self.tag, np.asarray(sheet), trainer.global_step, dataformats="HWC")
        except Exception as error:  # any error at all, as it does not affect the training itself
            rank_zero_warn(f"no {self.file}: {type(error).__name__}: {error}")


class TrainingExamples(_Examples):
    """Draws the first pictures that a new training learns from, augmented and mixed, with their targets.

    A look at ``training_examples.png`` in the run's folder shows whether the augmentation is too strong and whether the
    targets are right.
    """

    file, tag = "training_examples.png", "train/examples"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        def draw() -> list[Image.Image]:
            images, targets = batch[:2]
            if images is None:  # no picture of the batch can be read
                return []
            return pl_module.draw_training(images, targets, self.pictures)  # type: ignore[operator]  # a task's

        if trainer.global_step == batch_idx == 0:
            with isolate_rng(), torch.no_grad():  # so that the step mixes the pictures as they are drawn
                self._show(trainer, pl_module, draw)


class ValidationExamples(_Examples):
    """Draws the targets and predictions of a few validation pictures, evenly spaced from the first.

    ``validation_examples.png`` in the run's folder shows them after the last validation; TensorBoard keeps all.
    """

    file, tag = "validation_examples.png", "val/examples"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1 or type(trainer.strategy) is DDPStrategy:  # others would wait for all processes
            self._show(trainer, pl_module, lambda: self._draw(trainer, pl_module))

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
    """Arranges pictures on white, row by row, as many beside each other as fit; larger ones are scaled down to fit."""
    for picture in pictures:
        picture.thumbnail((_MOST_WIDTH, picture.height))
    cell = max(picture.width for picture in pictures) + _GAP
    columns = max(1, min(len(pictures), (_MOST_WIDTH + _GAP) // cell))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (columns * cell - _GAP, sum(heights) - _GAP), "white")
    for index, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * cell, sum(heights[:index])))
    return sheet
