"""The model card in a weights file: the network's architecture, its classes, and how its pictures are prepared."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import timm
from safetensors import SafetensorError, safe_open

from mobilemamba.errors import WeightsError
from mobilemamba.models.config import VARIANTS, ArchOverrides
from mobilemamba.models.create import check_model_name
from mobilemamba.models.runtime import runtime_of
from mobilemamba.models.weights_file import EXPECTED, first_line, read_checkpoint
from mobilemamba.text import printable

#: Key of the card in a Lightning checkpoint, and in the header of a .safetensors file.
CARD_KEY = "model_card"


@dataclass(frozen=True)
class Preprocessing:
    """How pictures are prepared for a network."""

    img_size: tuple[int, int]  # height and width in pixels
    mean: tuple[float, ...]  # per channel, of pictures in 0..1
    std: tuple[float, ...]  # per channel, of pictures in 0..1
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic"  # for scaling
    crop_pct: float = 0.875  # the short side is scaled to ``img_size / crop_pct``, and the centre is cropped
    #: Whether pictures are rotated by their EXIF orientation; None if unknown, as in older files: ``predict`` then
    #: rotates them, and data modules follow their own documentation.
    upright: bool | None = None
    antialias: bool = True  # whether scaling down averages pixels; always so for classifiers
    #: For detectors: whether pictures are stretched to ``img_size`` or keep their aspect ratio and fit into it.
    resize: Literal["fit", "stretch"] | None = None

    def __post_init__(self) -> None:
        for name in ("img_size", "mean", "std"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def of_model(cls, name: str) -> Preprocessing:
        """Returns timm's settings of a model; for mobilemamba models, the paper's size and ImageNet's mean and std.

        Raises:
            ConfigError: If there is no such model.
        """
        check_model_name(name)
        known = timm.models.get_pretrained_cfg(name)
        cfg = timm.data.resolve_data_config({}, pretrained_cfg=known.to_dict() if known else {})
        return cls(cfg["input_size"][1:], cfg["mean"], cfg["std"], cfg["interpolation"], cfg["crop_pct"])


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to rebuild a network from its weights and to interpret its outputs."""

    model: str  # timm's name of the network, or of the backbone of a head
    preprocessing: Preprocessing  # how its pictures are prepared
    num_classes: int = 1000  # number of outputs
    in_chans: int = 3  # channels of a picture
    #: Architecture choices that differ from the model's, by the names of ``ArchOverrides``.
    arch: dict[str, Any] = field(default_factory=dict)
    distilled: bool = False  # whether it has a second classifier, trained on a teacher's labels
    class_names: tuple[str, ...] = ()  # in the order of the outputs; empty if unknown
    data: str = ""  # what it was trained on, with the numbers of pictures; empty if unknown
    task: str = "classification"  # what it was trained for
    head: str = ""  # name of the head on the backbone ``model``; empty for the model's own classifier
    #: Options of the head, by the argument names of the function that builds it.
    head_options: dict[str, Any] = field(default_factory=dict)
    palette: tuple[tuple[int, int, int], ...] = ()  # the classes' colours, 0..255; empty if they have none
    category_ids: tuple[int, ...] = ()  # the classes' ids in COCO's result files; empty for 1, 2, ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "arch", json.loads(json.dumps(self.arch)))  # as in a file, with lists for tuples
        object.__setattr__(self, "head_options", json.loads(json.dumps(self.head_options)))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "palette", tuple(map(tuple, self.palette)))
        object.__setattr__(self, "category_ids", tuple(self.category_ids))

    @property
    def overrides(self) -> ArchOverrides:
        """``arch`` as ``create_model`` takes it."""
        return ArchOverrides(**self.arch)

    def as_dict(self) -> dict[str, Any]:
        """Returns the card as a dictionary of JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelCard:
        """Builds a card from a dictionary; the inverse of :meth:`as_dict`.

        Raises:
            ValueError: If fields are missing or unknown, or hold impossible values.
        """
        parts = _of_types(cls, content)
        _of_types(ArchOverrides, parts.get("arch", {}))
        how = Preprocessing(**_of_types(Preprocessing, parts.pop("preprocessing")))
        card = cls(**parts, preprocessing=how)
        check_model_name(card.model)
        if card.arch and card.model not in VARIANTS:
            raise ValueError(f"arch is {card.arch}, for a {card.model}, which has no such choices")
        if card.arch:
            VARIANTS[card.model].config.override(**card.overrides.given())  # raises for impossible choices
        numbers = len(how.std) == len(how.mean) and (card.in_chans != 3 or len(how.mean) in (1, 3))
        possible = {
            "num_classes": card.num_classes >= 0,
            "in_chans": card.in_chans >= 1,
            "img_size": min(how.img_size) >= 1,
            "mean": numbers and all(map(math.isfinite, how.mean)),
            "std": all(0 < value < math.inf for value in how.std),
            "palette": len(card.palette) in (0, card.num_classes)
            and all(0 <= channel < 256 for colour in card.palette for channel in colour),
            "category_ids": len(card.category_ids) in (0, card.num_classes),
            "crop_pct": 0 < how.crop_pct < math.inf,
        }
        if wrong := [name for name, is_possible in possible.items() if not is_possible]:
            raise ValueError(f"{wrong[0]} is {parts.get(wrong[0], getattr(how, wrong[0], None))}")
        return card


@functools.cache
def _parser(cls: type) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    return parser


def _of_types(cls: type, content: Any) -> dict[str, Any]:
    """Returns the arguments of a dataclass, parsed to the types of its fields.

    Raises:
        ValueError: If an argument has another type, or is missing or unknown.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"a {type(content).__name__} instead of named entries")
    try:
        parts = _parser(cls).parse_object(dict(content)).as_dict()
    except jsonargparse.ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from None
    for entry in fields(cls):
        if parts[entry.name] is None and "None" not in str(entry.type):  # the parser accepts null
            raise ValueError(f"{entry.name} is null")
    return {name: value for name, value in parts.items() if name in content}


def read_card(path: str | Path) -> ModelCard | None:
    """Reads the card of a ``.safetensors`` file, Lightning checkpoint or exported network; None if it has none.

    Raises:
        ConfigError: If it is an exported network and the package that reads it is not installed.
        WeightsError: If the file cannot be read, was written by another program, or has a card of another version of
            this package.
    """
    path = Path(path)
    content: Any = None
    runtime = runtime_of(path)
    exported = "" if runtime is None else runtime.metadata(path).get(CARD_KEY, "")
    if runtime is not None and not exported:
        raise WeightsError(
            f"{printable(path)} was written by another program: it does not describe its outputs; "
            "expected a file that mobilemamba export wrote"
        )
    try:
        readable = path.is_file() and os.access(path, os.R_OK) and path.stat().st_size
        if runtime is not None:
            content = json.loads(exported)
        elif path.suffix == ".safetensors" and readable:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(CARD_KEY)
            content = json.loads(text) if text else None
        else:  # its errors say what is wrong with the file
            content = read_checkpoint(path, mmap=True).get(CARD_KEY)
        card = ModelCard.from_dict(content) if content is not None else None
        if card is not None and card.class_names and len(card.class_names) != card.num_classes:
            raise ValueError(f"{len(card.class_names)} names for {card.num_classes} classes")
        return card
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"cannot read {printable(path)}: {getattr(error, 'strerror', None) or first_line(error)}; {EXPECTED}"
        ) from None
    except ValueError as error:
        raise WeightsError(
            f"cannot read what {printable(path)} says of its network: {first_line(error)}; write the file with this "
            "version"
        ) from None
