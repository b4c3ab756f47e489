"""A backbone of a stem, stages and a norm with timm's interface, for any kind of block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mobilemamba.errors import ConfigError

#: timm's names of poolings, each of which may follow ``fast``; see :func:`check_ends`.
POOLINGS = ("avg", "max", "avgmax", "catavgmax")


class Stage(nn.Module):
    """Downsampling, then blocks; with ``grad_checkpointing``, training keeps only the input of each.

    Args:
        downsample: Maps to the stage's channels and size.
        blocks: Modules that keep the shape.
    """

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint_seq([self.downsample, *self.blocks], x)
        return self.blocks(self.downsample(x))


class Backbone(nn.Module):
    """Everything but the head; subclasses add it by ``forward_head`` and ``reset_classifier``.

    Args:
        patch_embed: The stem.
        stages: The stages; each but the first halves the map.
        embed_dims: Channels of each stage.
        stride: Stride of the first stage.
        norm: Norm after the last stage.
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        stages: Iterable[Stage],
        embed_dims: Sequence[int],
        stride: int,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.patch_embed = patch_embed
        self.stages = nn.Sequential(*stages)
        self.norm = norm or nn.Identity()
        self.feature_info = [
            {"num_chs": dim, "reduction": stride * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(embed_dims)
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (B, in_chans, H, W) to the map of the last stage, after the norm if there is one."""
        return self.norm(self.stages(self.patch_embed(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, C, h, w) to logits (B, num_classes), or to pooled features (B, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """timm's interface: returns the maps of chosen stages, preceded by the features unless ``intermediates_only``.

        Args:
            x: Pictures (B, in_chans, H, W).
            indices: Indices of stages (negative from the end); an int takes that many of the last; None takes all.
            norm: Whether to return the last stage's map after the norm, as the features are.
            stop_early: Whether to skip the stages after the last one chosen.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Whether to return the list alone.

        Raises:
            ConfigError: If ``output_fmt`` is not ``"NCHW"``.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt={output_fmt!r}: only 'NCHW' is offered")
        taken, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.patch_embed(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            final = i == len(self.stages) - 1
            if i in taken:
                intermediates.append(self.norm(x) if norm and final else x)
        if intermediates_only:
            return intermediates
        return self.norm(x) if final else x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's interface: drops the stages after the last one chosen, with their norm, and the classifier."""
        taken, last = feature_take_indices(len(self.stages), indices)
        if prune_norm or last < len(self.stages) - 1:
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one for another number of classes; 0 removes it."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades computation for memory in training, by keeping only the inputs of blocks."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's grouping of parameters by depth, for layer-wise learning rates."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        stages = [(r"^stages\.(\d+)", None)] if coarse else fine
        return {"stem": r"^patch_embed", "blocks": [*stages, (r"^norm", (99999,))]}


def timm_cfg(side: int, stride: int, **own: Any) -> dict[str, Any]:
    """Returns timm's configuration for pictures of ``side`` px and a last stage of this stride, and ``own`` entries."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (math.ceil(side / stride),) * 2,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        **own,
    }


def check_ends(num_classes: int, global_pool: str, in_chans: int = 3) -> None:
    """Refuses what a network can neither begin nor end with.

    Args:
        num_classes: Of the classifier; 0 for none.
        global_pool: timm's name of a pooling; ``""`` for none, which a classifier cannot do without.
        in_chans: Channels of the picture.

    Raises:
        ConfigError: If it is one of these.
    """
    if in_chans < 1:
        raise ConfigError(f"in_chans={in_chans}: expected 1 or more, the channels of a picture")
    if num_classes < 0:
        raise ConfigError(f"num_classes={num_classes}: expected 1 or more, or 0 for no classifier")
    if global_pool and global_pool != "fast" and global_pool.removeprefix("fast") not in POOLINGS:
        raise ConfigError(f"global_pool={global_pool!r}: expected one of {', '.join(POOLINGS)}, or '' for none")
    if num_classes and not global_pool:
        raise ConfigError(
            f"global_pool='' with num_classes={num_classes}: a classifier needs a pooling, e.g. 'avg'; with "
            "num_classes=0 the network gives its map"
        )


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Returns the drop probability of each stage's blocks, rising linearly from 0 to ``last`` for the last block.

    Raises:
        ConfigError: If ``last`` is no probability.
    """
    if not 0 <= last <= 1:
        raise ConfigError(f"drop_path_rate={last}: expected 0 to 1, e.g. 0.1")
    rates = torch.linspace(0, last, sum(depths), device="cpu").split(list(depths))
    return [stage.tolist() for stage in rates]
