"""Validation pictures are drawn after each validation, the same ones, and the training does not notice."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mobilemamba.errors import ConfigError
from mobilemamba.scores import LOSS
from mobilemamba.training.callbacks import ValidationExamples
from mobilemamba.training.callbacks.examples import EXAMPLES_FILE
from mobilemamba.training.contract import TaskContract
from tests.training.callbacks.runs import Data, Net


class Drawn(TaskContract, Net):
    """Draws a stripe in the colour of the picture's class; keeps what it is given."""

    scores = (LOSS,)

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[bool, tuple[int, ...], int]] = []

    def draw_example(self, images: torch.Tensor, targets: torch.Tensor) -> Image.Image | None:
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002 - a network may draw
        self.drawn.append((self.training, tuple(images.shape), int(targets)))
        return Image.new("RGB", (20 + int(targets), 4), (10 * int(targets) + 10, 0, 0))


class NothingToDraw(Drawn):
    def draw_example(self, images: torch.Tensor, targets: torch.Tensor) -> Image.Image | None:
        super().draw_example(images, targets)
        return None


def fit(folder: Path, kind: Any, *callbacks: Callback, data: LightningDataModule | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 2, "logger": False, "accelerator": "cpu", **quiet, **options}
    task = kind()
    Trainer(default_root_dir=folder, callbacks=[*callbacks], **options).fit(task, data or Data())
    return task


def test_the_same_pictures_below_each_other_after_each_validation(tmp_path: Path) -> None:
    tensorboard, csv = TensorBoardLogger(tmp_path, "tb", "0"), CSVLogger(tmp_path, "csv")
    task = fit(tmp_path, Drawn, ValidationExamples(pictures=3), logger=[tensorboard, csv], precision="bf16-mixed")
    # Numbers 0, 4 and 8 of 12, of classes 0, 4 and 3, twice; none in Lightning's trial before the training.
    assert task.drawn == 2 * [(False, (1, 3, 32, 32), label) for label in (0, 4, 3)]
    sheet = np.asarray(Image.open(tmp_path / EXAMPLES_FILE))
    assert sheet.shape == (4 * 3 + 6 * 2, 24, 3)
    assert [tuple(sheet[y, 0]) for y in (0, 10, 20)] == [(10, 0, 0), (50, 0, 0), (40, 0, 0)]
    events = EventAccumulator(tensorboard.log_dir)
    events.Reload()
    assert [(image.step, image.height) for image in events.Images("val/examples")] == [(3, 24), (6, 24)]


def test_the_training_does_not_notice(tmp_path: Path) -> None:
    drawing, plain = fit(tmp_path, Drawn, ValidationExamples()), fit(tmp_path, Drawn)
    assert drawing.seen == plain.seen
    assert torch.equal(drawing.net[2].weight, plain.net[2].weight)
    assert len(drawing.drawn) == 8


@pytest.mark.parametrize(
    ("task", "pictures", "options"),
    [(NothingToDraw, 4, {}), (Drawn, 0, {}), (Net, 4, {}), (Drawn, 4, {"fast_dev_run": True})],
)
def test_nothing_is_written_where_there_is_nothing_to_draw(
    tmp_path: Path, task: Any, pictures: int, options: dict[str, Any]
) -> None:
    ran = fit(tmp_path, task, ValidationExamples(pictures), **options)
    assert not (tmp_path / EXAMPLES_FILE).exists()
    assert len(getattr(ran, "drawn", ())) == (2 if task is NothingToDraw else 0)  # asked once a validation


def test_more_pictures_than_there_are_and_other_data(tmp_path: Path) -> None:
    assert len(fit(tmp_path, Drawn, ValidationExamples(50), max_epochs=1).drawn) == 12

    class Other(LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.train_dataloader, self.val_dataloader = Data().train_dataloader, Data().val_dataloader  # type: ignore[method-assign]

    assert not fit(tmp_path, Drawn, ValidationExamples(), data=Other(), max_epochs=1).drawn


def test_a_failure_is_a_warning(tmp_path: Path) -> None:
    class Failing(Drawn):
        def draw_example(self, images: torch.Tensor, targets: torch.Tensor) -> Image.Image | None:
            raise KeyError("a colour")

    with pytest.warns(UserWarning, match="no drawings of validation pictures: KeyError: 'a colour'"):
        fit(tmp_path, Failing, ValidationExamples(), max_epochs=1)


def test_a_number_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="ValidationExamples: pictures=-1: expected 0 or more"):
        ValidationExamples(-1)
