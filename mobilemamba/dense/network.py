"""Base class of segmenters and detectors: a timm backbone, and the names of the authors' checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn

from mobilemamba.dense.release_names import SEGMENTER, Names, ours_to_release, release_to_ours
from mobilemamba.errors import ConfigError
from mobilemamba.models.mobilemamba import MobileMamba
from mobilemamba.models.release_names import Released, StateDict

#: Side in pixels of the smallest picture, half of the coarsest map's usual stride.
SMALLEST = 32


class DenseNetwork(Released):
    """A network with a ``backbone`` of :func:`~mobilemamba.dense.backbone.create_backbone`."""

    #: Table of the names in the authors' checkpoints.
    release_names: Names = SEGMENTER
    backbone: nn.Module

    @contextmanager
    def refusing_unsuitable(self, images: Tensor) -> Iterator[None]:
        """Context that says what is wrong with pictures (B, C, H, W) if the network fails on them.

        Raises:
            ConfigError: If they are too small, of a size that the backbone is not built for, or too few for the norms.
        """
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ConfigError(f"pictures of {width} x {height} px: expected {SMALLEST} a side or more; enlarge them")
        try:
            yield
        except (AssertionError, RuntimeError, ValueError) as error:
            if (reason := _why_unsuitable(error, height, width)) is None:
                raise
            raise ConfigError(reason) from error

    def no_weight_decay(self) -> set[str]:
        """Returns the parameters that weight decay would harm, according to the backbone."""
        model: Any = self.backbone.model
        return {f"backbone.model.{name}" for name in getattr(model, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """timm's grouping of parameters by depth: the backbone's own layers, then all that is built on them."""
        model: Any = self.backbone.model
        prefix, layers = "backbone.model.", group_parameters(model, model.group_matcher(coarse), reverse=True)
        return lambda name: layers.get(name.removeprefix(prefix), math.inf) if name.startswith(prefix) else math.inf

    def from_release(self, state: StateDict) -> StateDict:
        model = self.backbone.model
        directions = model.config.directions if isinstance(model, MobileMamba) else 1
        return release_to_ours(state, directions, self.release_names)

    def to_release(self, state: StateDict) -> StateDict:
        return ours_to_release(state, self.release_names)


def _why_unsuitable(error: Exception, height: int, width: int) -> str | None:
    """Returns what is wrong with pictures at which a network failed, or None if the error has another cause."""
    if isinstance(error, AssertionError):  # timm's transformers of a fixed size
        return f"pictures of {width} x {height} px do not suit the backbone: {error}"
    if any(part in str(error) for part in ("must match the size of tensor", "is invalid for input of size")):
        # Other timm models, whose attention is for a fixed size.
        return f"pictures of {width} x {height} px do not suit the backbone, which is built for another size"
    if "more than 1 value per channel" in str(error):
        return (
            f"a batch of one picture of {width} x {height} px: the norms need more than one number a channel to "
            "train on, and an average of the whole picture has no more; train on two pictures at a time or more"
        )
    return None
