"""Detectors for other runtimes: a graph computes every anchor's box and scores; the choice of objects follows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobilemamba.dense.anchors import within
from mobilemamba.dense.boxes import above, keep_best
from mobilemamba.dense.detector import Detector, Sizes, padded, sizes_of
from mobilemamba.dense.single_stage import SingleStageDetector
from mobilemamba.errors import ConfigError
from mobilemamba.models.card import Preprocessing
from mobilemamba.models.runtime import RuntimeNetwork, scaled

#: Key in a file's metadata for the rules by which its candidates become objects.
RULES_KEY = "kept"


@dataclass(frozen=True)
class Rules:
    """Rules that choose objects among candidates; see :class:`~mobilemamba.dense.single_stage.SingleStageDetector`."""

    levels: tuple[int, ...]  # number of candidates of each level, in order
    score_threshold: float
    candidates: int
    max_boxes: int
    overlap: float
    cells: tuple[tuple[int, int, int], ...]  # rows, columns and stride in pixels of each level's cells
    divisor: int  # pictures are padded to multiples of it

    def within(self, shown: tuple[int, int]) -> list[Tensor]:
        """Returns which candidates of each level are of cells that begin within a picture, padded on its own.

        Args:
            shown: Height and width of the picture, at the top left of the network's input.
        """
        part = padded(shown, self.divisor)
        return [
            within((rows, columns), stride, length // (rows * columns), part)
            for length, (rows, columns, stride) in zip(self.levels, self.cells, strict=True)
        ]


class Candidates(nn.Module):
    """Maps pictures (B, in_chans, H, W) to the boxes and scores of all anchors, (B, N, 4 + classes).

    The box (x1, y1, x2, y2) comes first, in shares of the picture's width and height and clipped to it, then the
    probability of each class, from 0 to 1.
    """

    def __init__(self, detector: SingleStageDetector):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        boxes, probabilities = self.detector.candidates_of(images)
        sides = torch.tensor([width, height] * 2, dtype=torch.float32)
        return torch.cat(((boxes / sides).clamp(0, 1), probabilities), -1)

    def rules(self, size: tuple[int, int], channels: int) -> Rules:
        """Returns the rules for pictures of a height and width."""
        detector = self.detector
        with torch.no_grad():
            levels = detector.levels(torch.zeros(1, channels, *size))
        strides = detector.anchors.strides
        cells = tuple((x.shape[-2], x.shape[-1], stride) for x, stride in zip(levels, strides, strict=True))
        lengths = tuple(rows * columns * detector.anchors.per_cell for rows, columns, _ in cells)
        limits = detector.score_threshold, detector.candidates, detector.max_boxes, detector.overlap
        return Rules(lengths, *limits, cells, detector.divisor)


def as_candidates(network: nn.Module) -> nn.Module:
    """Returns the network in a form that a graph of fixed shapes can hold; unchanged if it is no detector.

    Raises:
        ConfigError: If it is a two-stage detector.
    """
    if isinstance(network, SingleStageDetector):
        return Candidates(network).eval()
    if isinstance(network, Detector):
        raise ConfigError(
            f"{type(network).__name__} reads the regions that it has just found, whose number each picture decides, "
            "and an exported graph has fixed shapes; export a retinanet or an ssdlite"
        )
    return network


def input_size(network: nn.Module, how: Preprocessing) -> tuple[int, int]:
    """Returns the height and width of a graph's input for pictures prepared for a network.

    A detector's are padded if they keep their aspect ratio.
    """
    from mobilemamba.data.batches import DIVISOR  # `import mobilemamba` does without the data

    return padded(how.img_size, DIVISOR if isinstance(network, Detector) and how.resize == "fit" else 1)


def place_top_left(picture: Tensor, place: Tensor) -> tuple[int, int]:
    """Writes a picture (1, C, h, w) to the top left of a tensor (C, H, W), scaled down if it is larger.

    Returns:
        Its height and width there.
    """
    size, room = picture.shape[-2:], place.shape[-2:]
    factor = min(1.0, *(there / side for there, side in zip(room, size, strict=True)))
    if factor < 1:
        picture = scaled(picture, [max(1, int(side * factor + 0.5)) for side in size])
    height, width = picture.shape[-2:]
    place[:, :height, :width] = picture[0]
    return height, width


class RuntimeDetector(RuntimeNetwork):
    """A detector of :class:`Candidates` that another program runs, with the interface of :class:`Detector`.

    Pictures are placed at the top left of its input, with zeros around them; larger ones are scaled down.

    Args:
        network: The network that the other program runs.
        metadata: The metadata of its file.
    """

    def __init__(self, network: RuntimeNetwork, metadata: Mapping[str, str]) -> None:
        super().__init__(network.run, network.shape, network.how)
        content = json.loads(metadata[RULES_KEY])
        cells = tuple(map(tuple, content["cells"]))
        self.rules = Rules(**{**content, "levels": tuple(content["levels"]), "cells": cells})

    def forward(self, x: Tensor) -> Tensor:
        """Returns the candidates (B, N, 4 + classes), with boxes in shares of the network's input size."""
        placed, _ = self._placed(x, sizes_of(x, None))
        return super().forward(placed)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sizes | None = None) -> list[dict[str, Tensor]]:
        """See :meth:`Detector.detect`."""
        given = sizes_of(images, sizes)
        placed, shown = self._placed(images, given)
        return [
            self._objects(candidates, inner, outer)
            for candidates, inner, outer in zip(super().forward(placed), shown, given, strict=True)
        ]

    def _placed(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Places pictures in a batch of the network's input size; returns it and their heights and widths in it."""
        height, width = (int(side or 0) for side in self.shape[2:])
        placed, shown = images.new_zeros(*images.shape[:2], height, width), []
        for place, image, size in zip(placed, images, sizes, strict=True):
            shown.append(place_top_left(image[None, :, : size[0], : size[1]], place))
        return placed, shown

    def _objects(self, candidates: Tensor, shown: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
        """Selects a picture's objects among candidates (N, 4 + classes); scales boxes from ``shown`` to ``size``."""
        height, width = (int(side or 0) for side in self.shape[2:])
        rules, boxes, scores, labels = self.rules, list[Tensor](), list[Tensor](), list[Tensor]()
        for level, inside in zip(candidates.split(rules.levels), rules.within(shown), strict=True):
            level = level[inside]
            score, at, label = above(level[:, 4:], rules.score_threshold, rules.candidates)
            boxes.append(level[at, :4] * level.new_tensor([width, height] * 2))
            scores.append(score)
            labels.append(label)
        found = keep_best(torch.cat(boxes), torch.cat(scores), torch.cat(labels), shown, rules.overlap, rules.max_boxes)
        ratio = [own / inner for own, inner in zip(size, shown, strict=True)]
        found["boxes"] = found["boxes"] * found["boxes"].new_tensor([ratio[1], ratio[0]] * 2)
        return found
