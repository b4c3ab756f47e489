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

from mobilemamba.data.pictures import eval_transform, read_picture
from mobilemamba.drawing import Colour, captioned, distinct_colours, drawable
from mobilemamba.errors import ConfigError
from mobilemamba.models.card import ModelCard
from mobilemamba.models.checkpoints import PREDICTORS
from mobilemamba.models.inference import for_inference

#: One picture's answer, of plain JSON types but for what is only drawn.
Row = dict[str, Any]
#: In the rows of a segmentation: the class of each pixel.
LABELS = "labels"
#: In the rows of a detection with masks: (n, H, W) bool, the pixels of each object.
MASKS = "masks"

#: Pixels; smaller pictures are drawn enlarged beside their answers.
_LEAST_DRAWN = 224


class Predictor:
    """Answers pictures with a network; one subclass for each task.

    Attributes:
        columns: The names of the values in each of :meth:`lines`.
        drawn_only: Entries of a row that serve its drawings alone, and are not written as JSON.
        batch_size: Pictures at a time, by default.
        default_topk: How many answers a picture gets at most, by default; None for all.
        least_score: Answers with a lower score are left out; None for a task whose answers have no such score.
        network: A copy of the network, laid out for inference.
        how: What was done to it to make it fast, in words.
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
        """Lays a copy of the network out for inference.

        Args:
            network: On the CPU or on the device.
            card: What it is of.
            device: Where it is to run.
            dtype: Of its weights and pictures.
            topk: How many answers a picture gets at most; None for ``default_topk``.
        """
        self.card, self.device, self.dtype = card, device, dtype
        self.topk = self.default_topk if topk is None else topk
        self.network, self.how = for_inference(network, device, dtype, cuda_graph=True)
        how = {name: value for name, value in asdict(card.preprocessing).items() if value is not None}
        self._upright = how.pop("upright", True)  # so where the weights do not say
        self._transform = self.preparation(how)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes' names, in the order of the outputs."""
        return class_names(self.card)

    @cached_property
    def palette(self) -> tuple[Colour, ...]:
        """A colour for each class."""
        return self.card.palette or distinct_colours(self.card.num_classes)

    def preparation(self, how: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """The transform from a picture to a tensor (C, H, W).

        Args:
            how: The card's preprocessing, without ``upright``.
        """
        del how["antialias"]  # which Pillow always does
        return eval_transform(**how)

    def check(self) -> None:
        """Refuses a network that cannot answer pictures.

        Raises:
            ConfigError: If it takes other pictures than RGB, or there is no predictor for its task.
        """
        if self.card.task not in PREDICTORS:
            raise ConfigError(
                f"the network is for {self.card.task}; pictures are given to one for {' or '.join(PREDICTORS)}"
            )
        if self.card.in_chans != 3:
            raise ConfigError(f"the network takes {self.card.in_chans} channels; pictures are given to it in RGB")

    def look_closely(self, window: int | None, tta: bool) -> None:
        """From now on, shows the network windows of a picture, or several views of it.

        Args:
            window: The windows' side in pixels; None for whole pictures.
            tta: Whether to average over views of other sizes and mirrored ones (test-time augmentation).

        Raises:
            ConfigError: If the network is for a task that has neither, or the window is too small.
        """
        if window is not None or tta:
            raise ConfigError(f"--{'tta' if window is None else 'window'} is for segmentation, not {self.card.task}")

    def read(self, path: Path) -> Image.Image:
        """A picture in RGB, turned by its EXIF orientation if the training pictures were.

        Raises:
            DataError: If it cannot be read.
        """
        return read_picture(path, upright=self._upright)

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture as the network takes it, (C, H, W) float32."""
        return self._transform(picture)

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Any:
        """The network's outputs for prepared pictures (B, C, H, W), as :meth:`rows` takes them."""
        return self.ask(pictures.to(self.device, self.dtype, memory_format=torch.channels_last))

    def ask(self, x: Tensor) -> Any:
        """:meth:`forward` for pictures that are on the network's device, in its dtype."""
        return self.network(x)

    def rows(self, outputs: Any, sizes: Sequence[tuple[int, int]] | None = None) -> list[Row]:
        """The answer for each picture of a batch.

        Args:
            outputs: Of :meth:`forward`.
            sizes: Height and width of each picture as it was read, to give answers in its own pixels; None gives them
                in those of the prepared picture.
        """
        raise NotImplementedError

    def lines(self, row: Row) -> list[list[Any]]:
        """An answer as lines of a table, with the ``columns``."""
        raise NotImplementedError

    def draw(self, picture: Image.Image, row: Row) -> Image.Image:
        """The picture with its answer."""
        raise NotImplementedError

    def drawings(self, picture: Image.Image, row: Row) -> dict[str, Image.Image]:
        """All drawings of an answer: suffix for the file's name -> drawing; that of :meth:`draw` has no suffix."""
        return {"": self.draw(picture, row)}

    def results(self, answers: Sequence[tuple[str, Row]]) -> dict[str, str]:
        """The answers in formats of other programs: file name -> content.

        Args:
            answers: Each picture's path and row, without ``drawn_only``.
        """
        return {}


class ClassificationPredictor(Predictor):
    """Names the likeliest classes: rows ``{"classes": [{"index", "name", "probability"}, ...]}``."""

    columns = ("rank", "index", "class", "probability")

    def check(self) -> None:
        """See :meth:`Predictor.check`; refuses one without a classifier, too."""
        super().check()
        if not self.card.num_classes:
            raise ConfigError("the network has no classifier; give weights of one with its classes")

    def rows(self, outputs: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[Row]:
        """The likeliest classes first, of logits (B, classes)."""
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
        if (times := _LEAST_DRAWN // max(picture.size)) > 1:
            picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
        names = [drawable(entry["name"], f"class {entry['index']}") for entry in row["classes"]]
        lines = [f"{entry['probability']:6.1%}  {name}" for entry, name in zip(row["classes"], names, strict=True)]
        return captioned(picture, lines)


def class_names(card: ModelCard) -> tuple[str, ...]:
    """The names in the weights; for 1,000 nameless classes those of ImageNet-1k, for others their numbers."""
    if card.class_names:
        return card.class_names
    if card.num_classes == 1000:
        imagenet = ImageNetInfo()
        return tuple(imagenet.index_to_description(index) for index in range(1000))
    return tuple(f"class {index}" for index in range(card.num_classes))


def predictor_of(network: nn.Module, card: ModelCard, *args: Any, **options: Any) -> Predictor:
    """The predictor for a card's task, with the arguments of :class:`Predictor`.

    For an unknown task it is one that only knows how to refuse, by :meth:`Predictor.check`.
    """
    kind = pkgutil.resolve_name(PREDICTORS[card.task]) if card.task in PREDICTORS else Predictor
    predictor: Predictor = kind(network, card, *args, **options)
    return predictor
