"""Base class of segmenters and detectors: a timm backbone, and the names of the authors' checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mobilemamba.dense.backbone import by_depth, why_unsuitable
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
    def suiting(self, images: Tensor) -> Iterator[None]:
        """Context that reports what is wrong with pictures (B, C, H, W) at which the network fails.

        Raises:
            ConfigError: If they are too small, of a size that the backbone is not built for, or too few for the norms.
        """
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ConfigError(f"pictures of {width} x {height} px: expected {SMALLEST} a side or more; enlarge them")
        try:
            yield
        except (AssertionError, RuntimeError, ValueError) as error:
            if (reason := why_unsuitable(error, height, width)) is None:
                raise
            raise ConfigError(reason) from error

    def no_weight_decay(self) -> set[str]:
        """Returns the parameters that weight decay would harm, according to the backbone."""
        model: Any = self.backbone.model
        return {f"backbone.model.{name}" for name in getattr(model, "no_weight_decay", set)()}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Groups parameters by depth, see :func:`~mobilemamba.dense.backbone.by_depth`."""
        return by_depth(self.backbone, coarse=coarse)

    def from_release(self, state: StateDict) -> StateDict:
        model = self.backbone.model
        directions = model.config.directions if isinstance(model, MobileMamba) else 1
        return release_to_ours(state, directions, self.release_names)

    def to_release(self, state: StateDict) -> StateDict:
        return ours_to_release(state, self.release_names)
