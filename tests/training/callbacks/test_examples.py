"""Pictures are drawn before the first step and after each validation, and the training does not notice."""

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
from mobilemamba.training.callbacks import StepSeed, TrainingExamples, ValidationExamples
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

    def draw_training(self, images: torch.Tensor, targets: torch.Tensor, number: int) -> list[Image.Image]:
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002 - as mixing does
        self.drawn += [(self.training, tuple(images.shape), label) for label in targets.tolist()]
        return [Image.new("RGB", (600, 10 + 5 * index), "red") for index in range(min(number, len(images)))]


class NothingToDraw(Drawn):
    def draw_example(self, images: torch.Tensor, targets: torch.Tensor) -> Image.Image | None:
        super().draw_example(images, targets)
        return None


def fit(
    folder: Path,
    kind: Any,
    *callbacks: Callback,
    data: LightningDataModule | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Any:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 2, "logger": False, "accelerator": "cpu", **quiet, **options}
    task = kind()
    Trainer(default_root_dir=folder, callbacks=[*callbacks], **options).fit(task, data or Data(), ckpt_path=ckpt_path)
    return task


def test_the_same_pictures_side_by_side_after_each_validation(tmp_path: Path) -> None:
    tensorboard, csv = TensorBoardLogger(tmp_path, "tb", "0"), CSVLogger(tmp_path, "csv")
    task = fit(tmp_path, Drawn, ValidationExamples(pictures=3), logger=[tensorboard, csv], precision="bf16-mixed")
    # Numbers 0, 4 and 8 of 12, of classes 0, 4 and 3, twice; none in Lightning's trial before the training.
    assert task.drawn == 2 * [(False, (1, 3, 32, 32), label) for label in (0, 4, 3)]
    sheet = np.asarray(Image.open(tmp_path / ValidationExamples.file))
    assert sheet.shape == (4, 24 * 3 + 6 * 2, 3)
    assert [tuple(sheet[0, x]) for x in (0, 30, 60)] == [(10, 0, 0), (50, 0, 0), (40, 0, 0)]
    events = EventAccumulator(tensorboard.log_dir)
    events.Reload()
    assert [(image.step, image.width) for image in events.Images("val/examples")] == [(3, 84), (6, 84)]


def test_the_first_pictures_to_learn_from_row_by_row(tmp_path: Path) -> None:
    tensorboard = TensorBoardLogger(tmp_path, "tb", "0")
    task = fit(tmp_path, Drawn, TrainingExamples(pictures=3), logger=tensorboard, accumulate_grad_batches=2)
    assert [label for _, _, label in task.drawn] == task.seen[0][1]  # of the first batch, once
    with Image.open(tmp_path / TrainingExamples.file) as sheet:
        assert sheet.size == (2 * 600 + 6, 15 + 6 + 20)  # two fit beside each other
        assert [sheet.getpixel((x, y)) for x, y in ((0, 9), (606, 14), (0, 40))] == 3 * [(255, 0, 0)]
        assert [sheet.getpixel((x, y)) for x, y in ((0, 10), (603, 0), (606, 21))] == 3 * [(255, 255, 255)]
    events = EventAccumulator(tensorboard.log_dir)
    events.Reload()
    assert [image.step for image in events.Images("train/examples")] == [0]


def test_a_picture_wider_than_a_sheet_is_scaled_down(tmp_path: Path) -> None:
    class Wide(Drawn):
        def draw_training(self, images: torch.Tensor, targets: torch.Tensor, number: int) -> list[Image.Image]:
            return [Image.new("RGB", (3200, 800), "blue"), Image.new("RGB", (50, 50), "red")]

    fit(tmp_path, Wide, TrainingExamples(), max_epochs=1)
    with Image.open(tmp_path / TrainingExamples.file) as sheet:
        assert sheet.size == (1600, 400 + 6 + 50)
        assert (sheet.getpixel((1599, 399)), sheet.getpixel((49, 455))) == ((0, 0, 255), (255, 0, 0))


def test_a_resumed_training_draws_none(tmp_path: Path) -> None:
    first = tmp_path / "first.ckpt"
    trainer = fit(tmp_path, Drawn, max_epochs=1).trainer
    trainer.save_checkpoint(first)
    assert not fit(tmp_path, Drawn, TrainingExamples(), ckpt_path=first).drawn  # they were drawn before the stop


def test_the_training_does_not_notice(tmp_path: Path) -> None:
    for seeds in ([], [StepSeed()]):
        drawing = fit(tmp_path, Drawn, *seeds, TrainingExamples(), ValidationExamples(4))
        plain = fit(tmp_path, Drawn, *seeds)
        assert drawing.seen == plain.seen
        assert torch.equal(drawing.net[2].weight, plain.net[2].weight)
        assert len(drawing.drawn) == 4 + 8


@pytest.mark.parametrize(
    ("task", "pictures", "options"),
    [(NothingToDraw, 4, {}), (Drawn, 0, {}), (Net, 4, {}), (Drawn, 4, {"fast_dev_run": True})],
)
def test_nothing_is_written_where_there_is_nothing_to_draw(
    tmp_path: Path, task: Any, pictures: int, options: dict[str, Any]
) -> None:
    training = TrainingExamples(0 if task is NothingToDraw else pictures)
    ran = fit(tmp_path, task, training, ValidationExamples(pictures), **options)
    assert not [*tmp_path.glob("*.png")]
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

    with pytest.warns(UserWarning, match="no validation_examples.png: KeyError: 'a colour'"):
        fit(tmp_path, Failing, ValidationExamples(), max_epochs=1)


def test_a_number_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="ValidationExamples: pictures=-1: expected 0 or more"):
        ValidationExamples(-1)
