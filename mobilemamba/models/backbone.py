"""A stem, stages and a norm: what timm asks of the package's networks, whatever their blocks are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mobilemamba.errors import ConfigError


class Stage(nn.Module):
    """Downsampling, then blocks; training keeps only the inputs of each if ``grad_checkpointing`` is set.

    Args:
        downsample: To the stage's channels and size.
        blocks: Each of the same shape in and out.
    """

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.downsample, *self.blocks], x)
        return self.blocks(self.downsample(x))


class Backbone(nn.Module):
    """Everything but the head, which a network adds with ``forward_head`` and ``reset_classifier``.

    Args:
        patch_embed: The stem.
        stages: Each but the first halves the map.
        embed_dims: Channels of each stage.
        stride: Of the first stage.
        norm: After the last stage.
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
        """(B, in_chans, H, W) to the last stage's map, after the norm if there is one."""
        return self.norm(self.stages(self.patch_embed(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) to logits (B, num_classes), or to pooled features (B, C)."""
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
        """timm's interface: the maps of chosen stages, with the features in front unless ``intermediates_only``.

        Args:
            x: Pictures (B, in_chans, H, W).
            indices: Stages, by index (negative from the end); an int takes the last so many; None takes all.
            norm: Give the last stage's map after the norm, as the features are.
            stop_early: Do not compute stages after the last one asked for.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Return the list alone.

        Raises:
            ConfigError: If ``output_fmt`` is another.
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
        """timm's interface: drops the stages after the last one asked for, with their norm, and the classifier."""
        taken, last = feature_take_indices(len(self.stages), indices)
        if prune_norm or last < len(self.stages) - 1:
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for another number of classes; 0 removes it."""
        raise NotImplementedError

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade computation for memory in training: keep block inputs only."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's grouping of parameters by depth, for layer-wise learning rates."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        stages = [(r"^stages\.(\d+)", None)] if coarse else fine
        return {"stem": r"^patch_embed", "blocks": [*stages, (r"^norm", (99999,))]}


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Probabilities of dropping each stage's blocks, that rise linearly from 0 to that of the last block."""
    rates = torch.linspace(0, last, sum(depths), device="cpu").split(list(depths))
    return [stage.tolist() for stage in rates]
