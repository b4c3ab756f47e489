"""The base class of tasks whose network is a head on a backbone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from mobilemamba.dense import load_backbone
from mobilemamba.models import ArchOverrides, ModelCard, load_weights, read_card
from mobilemamba.models.matching import match, spellings
from mobilemamba.models.weights_file import find_tensors
from mobilemamba.tasks.base import Task
from mobilemamba.tasks.settings import network_settings
from mobilemamba.training.optimizer import DecayRule


class DenseTask(Task):
    """Base class of tasks that train and test a head on MobileMamba or on any other timm model with feature maps.

    Attributes:
        head_options: Arguments that configure the head -> values assumed if a model card does not have them.
    """

    # A segmenter's logits of one picture take 150 MB at 512 px, and RetinaNet needs seconds for one at 800 px.
    table_batch: ClassVar[int] = 1
    head_options: ClassVar[dict[str, Any]]
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "in_chans": (1, math.inf),
        "drop_path_rate": (0, 1),
        **Task.LIMITS,
    }

    def __init__(
        self,
        name: str = "mobilemamba_s6",
        arch: ArchOverrides = ArchOverrides(),  # noqa: B008 - read only; an Optional would hide its options in --help
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        min_lr_ratio: float = 0.0,
        warmup_lr_ratio: float = 1e-5,
        warmup_steps: int | None = 500,
        weight_decay_rule: DecayRule = "downstream",
        **training: Any,
    ) -> None:
        """Stores the settings; the optimiser's defaults are those common to the paper's ADE20K and COCO trainings.

        Args:
            name: Backbone: any timm model with feature maps, or mobilemamba_t2, _t4, _s6, _b1, _b2 or _b4.
            arch: Changes to the architecture of a mobilemamba model; not for other models.
            in_chans: Channels of a picture.
            drop_path_rate: Fraction of residual branches dropped in training; null for the value that the model was
                released with: 0.03 for mobilemamba_b1, _b2 and _b4, none for others.
            min_lr_ratio: Ratio of the final to the peak learning rate.
            warmup_lr_ratio: Ratio of the first to the peak learning rate.
            warmup_steps: Length of the linear warm-up in optimiser steps; null to use ``warmup_epochs``.
            weight_decay_rule: Parameters that decay: ``downstream``, all but LayerNorms, as in the release's detectors
                and segmenters; ``release``, all but vectors, as in its classifiers; ``clean``, all but vectors and the
                biases, scales and logarithms that are stored as matrices.
            **training: Initial weights, of a classifier for the backbone alone or of the whole network; the remaining
                settings of optimiser, schedule, average and layout: arguments of
                :class:`~mobilemamba.tasks.base.Task`.

        Raises:
            ConfigError: If a value is out of range.
        """
        given = dict(locals())
        super().__init__(**training)
        self.keep_settings(given | network_settings(name, arch, drop_path_rate))

    def network_arguments(self, num_classes: int | None, in_chans: int | None) -> dict[str, Any]:
        """Returns the arguments to build a network with any head; takes the arguments of :meth:`build_model`."""
        hparams = self.hparams
        return {
            "head": hparams["head"],
            "backbone": hparams["name"],
            "num_classes": hparams["num_classes"] if num_classes is None else num_classes,
            "head_dim": hparams["head_dim"],
            "arch": ArchOverrides(**hparams["arch"]),
            "in_chans": hparams["in_chans"] if in_chans is None else in_chans,
            "drop_path_rate": hparams["drop_path_rate"],
        }

    def load(self, model: nn.Module, weights: str) -> None:
        """Loads weights of a whole network, or those of a classifier into the backbone alone."""
        card = read_card(weights)
        if card is None:  # then the tensors' names tell, as those of a classifier match the backbone only
            found = match(model, find_tensors(weights, *spellings(model))).report.loaded
            whole = not all(name.startswith("backbone.") for name in found)
        else:
            whole = card.task == self.task
        if whole:
            load_weights(model, weights, **self.accepted)
        elif self.accepted["partial"]:
            load_weights(model.get_submodule("backbone.model"), weights, partial=True)
        else:
            load_backbone(model.get_submodule("backbone"), weights, self.hparams["name"])

    @classmethod
    def settings_of(cls, card: ModelCard) -> dict[str, Any]:
        if card.task != cls.task:
            return super().settings_of(card)
        return super().settings_of(card) | {"head": card.head, **cls.head_options, **card.head_options}

    @property
    def model_card(self) -> ModelCard:
        """The model card, with the head and its options, and the palette and category ids of the data's classes."""
        hparams, data = self.hparams, self.data
        return replace(
            super().model_card,
            head=hparams["head"],
            head_options={name: hparams[name] for name in self.head_options if hparams[name]},
            palette=getattr(data, "palette", ()),
            category_ids=getattr(data, "category_ids", ()),
        )

    @property
    def class_names(self) -> list[str]:
        """Class names of the data, or class numbers if there is no data module."""
        return [*map(str, range(self.hparams["num_classes"]) if self.data is None else self.data.class_names)]
