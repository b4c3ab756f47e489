"""Predictors: they prepare pictures as a card says, run the network, and give its answers as rows and drawings."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn

from mobilemamba.data.classification_transforms import eval_transform
from mobilemamba.data.pictures import read_picture
from mobilemamba.drawing import Colour, captioned, distinct_colours, drawable, enlarged
from mobilemamba.errors import ConfigError
from mobilemamba.models.card import ModelCard
from mobilemamba.models.checkpoints import PREDICTORS
from mobilemamba.models.inference import for_inference

#: The answer to one picture, of plain JSON types except for what is only drawn.
Row = dict[str, Any]
#: Key in the rows of a segmentation: the class of each pixel.
LABELS = "labels"
#: Key in the rows of a detection with masks: (n, H, W) bool, the pixels of each object.
MASKS = "masks"

#: Pixels; smaller pictures are enlarged before they are drawn beside their answers.
_LEAST_DRAWN = 224


class Predictor:
    """Runs a network on pictures and returns its answers; there is one subclass for each task.

    Attributes:
        columns: Names of the columns that :meth:`lines` returns.
        drawn_only: Keys of a row that are only for drawings, and not JSON.
        batch_size: Default number of pictures in a batch.
        default_topk: Default number of answers per picture, at most; None for all.
        least_score: Score that an answer needs to be given; None for tasks whose answers do not depend on a score.
        network: The network, laid out for inference.
        how: Description of how it was made fast.
    """

    columns: ClassVar[tuple[str, ...]]
    drawn_only: ClassVar[tuple[str, ...]] = (LABELS,)
    batch_size: ClassVar[int] = 32
    default_topk: ClassVar[int | None] = 5
    least_score: float | None = None

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        topk: int | None = None,
    ) -> None:
        """Lays out a copy of the network for inference.

        Args:
            network: The network, on the CPU or on the device.
            card: Its card.
            device: Device to run on.
            dtype: Dtype of its weights and pictures.
            topk: The most answers to give for a picture; None for the task's default.
        """
        self.card, self.device, self.dtype = card, device, dtype
        self.topk = self.default_topk if topk is None else topk
        self.network, self.how = for_inference(network, device, dtype, cuda_graph=True)
        preprocessing = {name: value for name, value in asdict(card.preprocessing).items() if value is not None}
        self._upright = preprocessing.pop("upright", True)  # the default if the card does not say
        self._transform = self.preparation(preprocessing)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes' names, in the order of the outputs."""
        return class_names(self.card)

    @cached_property
    def palette(self) -> tuple[Colour, ...]:
        """One colour for each class."""
        return self.card.palette or distinct_colours(self.card.num_classes)

    def preparation(self, how: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Returns the function that prepares a picture.

        Args:
            how: The card's preprocessing, without ``upright``.
        """
        del how["antialias"]  # Pillow always does it
        return eval_transform(**how)

    def check(self) -> None:
        """Refuses a network that cannot answer pictures.

        Raises:
            ConfigError: If it takes pictures other than RGB, or is for a task without a predictor.
        """
        if self.card.task not in PREDICTORS:
            raise ConfigError(
                f"the network is for {self.card.task}; pictures are given to one for {' or '.join(PREDICTORS)}"
            )
        if self.card.in_chans != 3:
            raise ConfigError(f"the network takes {self.card.in_chans} channels; pictures are given to it in RGB")

    def look_closely(self, window: int | None, tta: bool) -> None:
        """Makes later calls average over windows of a picture, or over several views of it.

        Args:
            window: Side of the windows in pixels; None for whole pictures.
            tta: Whether to average over scaled and mirrored views.

        Raises:
            ConfigError: If the network's task has neither, or the window is too small.
        """
        if window is not None or tta:
            raise ConfigError(f"--{'tta' if window is None else 'window'} is for segmentation, not {self.card.task}")

    def read(self, path: Path) -> Image.Image:
        """Reads a picture in RGB, rotated by its EXIF orientation if the training pictures were.

        Raises:
            DataError: If it cannot be read.
        """
        return read_picture(path, upright=self._upright)

    def prepare(self, picture: Image.Image) -> Tensor:
        """Prepares a picture for the network, (C, H, W) float32."""
        return self._transform(picture)

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Any:
        """Returns the network's outputs for prepared pictures (B, C, H, W), for :meth:`rows`."""
        return self.ask(pictures.to(self.device, self.dtype, memory_format=torch.channels_last))

    def ask(self, x: Tensor) -> Any:
        """Does the same for pictures that are already on the network's device."""
        return self.network(x)

    def rows(self, outputs: Any, sizes: Sequence[tuple[int, int]] | None = None) -> list[Row]:
        """Returns the answer for each picture of a batch.

        Args:
            outputs: Outputs of :meth:`forward`.
            sizes: Height and width of each picture as read, for answers that have the picture's own size; None for
                answers in the prepared size.
        """
        raise NotImplementedError

    def lines(self, row: Row) -> list[list[Any]]:
        """Returns an answer as the lines of a table with the ``columns``."""
        raise NotImplementedError

    def draw(self, picture: Image.Image, row: Row) -> Image.Image:
        """Draws an answer on its picture."""
        raise NotImplementedError

    def drawings(self, picture: Image.Image, row: Row) -> dict[str, Image.Image]:
        """Returns all drawings of an answer by the suffix of their file names; by default only that of :meth:`draw`."""
        return {"": self.draw(picture, row)}

    def results(self, answers: Sequence[tuple[str, Row]]) -> dict[str, str]:
        """Returns files with the answers to a folder of pictures in common formats: file name to content.

        Args:
            answers: Path and row of each picture, without what is only drawn; without an answer if it is unreadable.
        """
        return {}


class ClassificationPredictor(Predictor):
    """Returns the most probable classes, in rows ``{"classes": [{"index", "name", "probability"}, ...]}``."""

    columns = ("rank", "index", "class", "probability")

    def check(self) -> None:
        """Refuses what :meth:`Predictor.check` refuses, and a network without a classifier."""
        super().check()
        if not self.card.num_classes:
            raise ConfigError("the network has no classifier; give weights of one with its classes")

    def rows(self, outputs: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[Row]:
        """Returns the most probable classes first, for logits (B, classes)."""
        top = outputs.float().softmax(-1).topk(min(self.topk or self.card.num_classes, self.card.num_classes))
        return [
            {
                "classes": [
                    {"index": index, "name": self.names[index], "probability": round(value, 6)}
                    for value, index in zip(values, indices, strict=True)
                ]
            }
            for values, indices in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]

    def lines(self, row: Row) -> list[list[Any]]:
        return [
            [rank, entry["index"], entry["name"], entry["probability"]] for rank, entry in enumerate(row["classes"], 1)
        ]

    def draw(self, picture: Image.Image, row: Row) -> Image.Image:
        names = [drawable(entry["name"], f"class {entry['index']}") for entry in row["classes"]]
        lines = [f"{entry['probability']:6.1%}  {name}" for entry, name in zip(row["classes"], names, strict=True)]
        return captioned(enlarged(picture, _LEAST_DRAWN), lines)


def class_names(card: ModelCard) -> tuple[str, ...]:
    """Returns the card's names; else those of ImageNet-1k if there are 1,000 classes, else the classes' numbers."""
    if card.class_names:
        return card.class_names
    if card.num_classes == 1000:
        imagenet = ImageNetInfo()
        return tuple(imagenet.index_to_description(index) for index in range(1000))
    return tuple(f"class {index}" for index in range(card.num_classes))


def predictor_of(network: nn.Module, card: ModelCard, *args: Any, **options: Any) -> Predictor:
    """Builds the predictor for a card's task, with the arguments of :class:`Predictor`.

    For an unknown task it is one that can only refuse, by :meth:`Predictor.check`.
    """
    kind = pkgutil.resolve_name(PREDICTORS[card.task]) if card.task in PREDICTORS else Predictor
    predictor: Predictor = kind(network, card, *args, **options)
    return predictor
