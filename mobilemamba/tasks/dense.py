"""What tasks have in common whose network is a head on a backbone."""

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
from mobilemamba.training.contract import network_settings
from mobilemamba.training.optimizer import DecayRule


class DenseTask(Task):
    """Trains and tests a head on MobileMamba or on any other timm model that gives maps; a subclass says which.

    Attributes:
        head_options: Arguments that choose a head, and what stands for those that a card does not have.
    """

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
        """The defaults of the optimiser are what the paper's trainings on ADE20K and COCO share.

        Args:
            name: Backbone: any timm model that gives maps; mobilemamba_t2, _t4, _s6, _b1, _b2 or _b4.
            arch: Architecture choices laid over a mobilemamba model; not for others.
            in_chans: Channels of a picture.
            drop_path_rate: Share of residual branches dropped in training; null for what the model was released with:
                0.03 for mobilemamba_b1, _b2 and _b4, none for others.
            min_lr_ratio: Final over peak learning rate.
            warmup_lr_ratio: First over peak learning rate.
            warmup_steps: Length of the linear warm-up in optimiser steps; null for ``warmup_epochs``.
            weight_decay_rule: What decays: all but LayerNorms, as in the release's ``downstream`` trainings; all but
                vectors, as in its classifiers' (``release``); or a ``clean`` choice that spares, beside vectors,
                biases, scales and logarithms stored as matrices.
            **training: Weights to start from, of a classifier for the backbone alone or of the whole network; the rest
                of optimiser and schedule, average and layout, as :class:`~mobilemamba.tasks.base.Task` takes them.

        Raises:
            ConfigError: If a value is out of range.
        """
        given = dict(locals())
        super().__init__(**training)
        self.keep_settings(given | network_settings(name, arch, drop_path_rate))

    def network_arguments(self, num_classes: int | None, in_chans: int | None) -> dict[str, Any]:
        """What the network of any head is built by; the arguments are those of :meth:`build_model`."""
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
        """A file of such a network as a whole; a classifier's into the backbone."""
        card = read_card(weights)
        if card is None:  # then the names tell: those of a classifier are the backbone's
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
        """With the head, and what the data say of their classes besides the names."""
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
        """Those of the data, or their numbers."""
        return [*map(str, range(self.hparams["num_classes"]) if self.data is None else self.data.class_names)]
