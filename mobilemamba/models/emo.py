"""EMO (Zhang et al., "Rethinking Mobile Block for Efficient Attention-based Models", ICCV 2023), for comparison.

    picture (B, in_chans, H, W)
      patch_embed            stride 2: a convolution, then a block without expansion
      stages.0 ... stages.3  blocks at 1/4, 1/8, 1/16, 1/32; the first of each halves the map and widens it
      norm, head             LayerNorm, average pool, linear

A block, the paper's inverted residual mobile block (iRMB), is ``x + DropPath(F(x))``, where F consists of norm,
attention over dilated windows (in the last two stages), expansion, residual depthwise convolution and projection.

It is built from what the paper says. No weights are published for these names, so only counts can show that it is
right: all four sizes have the paper's parameters (truncated to one decimal; no reading of the paper fits rounding) and
FLOPs (norms counted). These require that the stem's block has neither norm nor expansion, and that biases are in the
expansions, or in both the queries and keys and the projections; here every 1x1 convolution has one. The counts leave
open how narrow the stem's squeeze and excitation is (8 channels here), and whether an activation follows the stem's
first norm (none here). Windows consist of every n-th pixel of a map; where they do not divide it, the padding takes no
part in the attention.

Dimension letters: B batch, C channels, H and W sides of the map; W windows of all pictures, N heads, T tokens per
window, F channels per head.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, SqueezeExcite, register_notrace_module
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from mobilemamba.layers.batch_norm import BatchNorm2d
from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.residual import Residual
from mobilemamba.models.backbone import Backbone, Stage, check_ends, drop_path_rates, timm_cfg

__all__ = ["emo_1m", "emo_2m", "emo_5m", "emo_6m"]

#: The largest number of tokens along a window's side.
WINDOW = 7
STEM_DIM = 24
_EPS = 1e-6
# Norm, activation and depthwise kernel size of the stages without attention (False) and with it (True).
_KINDS = {False: (BatchNorm2d, nn.SiLU, 3), True: (LayerNorm2d, nn.GELU, 5)}


def to_windows(x_BCHW: Tensor, steps: tuple[int, int]) -> Tensor:
    """Cuts maps into dilated windows (W, C, T); a window takes every n-th pixel in both directions.

    Args:
        x_BCHW: Maps; those that the steps do not divide are padded with zeros at the bottom and on the right.
        steps: Distance between a window's pixels, down and across; their product is the number of windows per map.
    """
    down, across = steps
    height, width = x_BCHW.shape[2:]
    x = F.pad(x_BCHW, (0, -width % across, 0, -height % down))
    x = x.unflatten(3, (-1, across)).unflatten(2, (-1, down))  # B, C, h, down, w, across
    return x.permute(0, 3, 5, 1, 2, 4).flatten(4).flatten(0, 2)


def from_windows(x_WCT: Tensor, steps: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Inverts ``to_windows``: returns the maps (B, C, H, W) of a given size."""
    (down, across), (height, width) = steps, size
    x = x_WCT.unflatten(2, (-(-height // down), -(-width // across))).unflatten(0, (-1, down, across))
    return x.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)[:, :, :height, :width]


@register_notrace_module  # a single node for torch.fx, which cannot follow what depends on a shape
class WindowAttention(nn.Module):
    """Mixes a map by softmax attention over dilated windows of at most 7x7 pixels; (B, C, H, W) in and out.

    Queries and keys are projections, values are the input itself, since the block expands what was mixed.

    Args:
        dim: Channels, a multiple of ``head_dim``.
        head_dim: Channels per head.
    """

    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        self.heads = dim // head_dim
        self.qk = nn.Conv2d(dim, 2 * dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        batch, _, height, width = x_BCHW.shape
        steps = (-(-height // WINDOW), -(-width // WINDOW))
        q, k, v = (
            to_windows(x, steps).unflatten(1, (self.heads, -1)).transpose(2, 3)
            for x in (*self.qk(x_BCHW).chunk(2, dim=1), x_BCHW)
        )
        mask_WNTT = None
        if height % steps[0] or width % steps[1]:  # no token attends to the padding
            exists = to_windows(x_BCHW.new_ones(1, 1, height, width), steps) > 0
            mask_WNTT = exists[:, None].repeat(batch, 1, 1, 1)
        y_WNTF = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_WNTT)
        return from_windows(y_WNTF.transpose(2, 3).flatten(1, 2), steps, (height, width))


class Stem(nn.Sequential):
    """Maps pictures (B, in_chans, H, W) to (B, 24, H/2, W/2)."""

    def __init__(self, in_chans: int):
        super().__init__()
        self.conv = ConvNorm(in_chans, STEM_DIM, 3, stride=2)
        self.dw = nn.Sequential(ConvNorm(STEM_DIM, STEM_DIM, 3, groups=STEM_DIM), nn.SiLU())
        self.se = SqueezeExcite(STEM_DIM)
        self.project = nn.Conv2d(STEM_DIM, STEM_DIM, 1)


class MobileBlock(nn.Sequential):
    """The function F of a block (see the module's docstring), (B, C, H, W) to (B, C', H', W').

    Args:
        dim: Channels C.
        out_dim: Channels C'; they differ from ``dim`` only with a stride.
        hidden_dim: Channels between expansion and projection.
        late: Whether the block is in one of the last two stages, which have another norm, activation and kernel size.
        head_dim: Channels per attention head; 0 leaves attention out.
        stride: Stride of the depthwise convolution, which is residual if the stride is 1.
    """

    def __init__(self, dim: int, out_dim: int, hidden_dim: int, late: bool, head_dim: int = 0, stride: int = 1):
        super().__init__()
        norm, act, kernel_size = _KINDS[late]
        self.norm = norm(dim, eps=_EPS)
        if head_dim:
            self.attention = WindowAttention(dim, head_dim)
        self.expand = nn.Sequential(nn.Conv2d(dim, hidden_dim, 1), act())
        dw = nn.Sequential(ConvNorm(hidden_dim, hidden_dim, kernel_size, stride, groups=hidden_dim), nn.SiLU())
        self.dw = Residual(dw) if stride == 1 else dw
        self.project = nn.Conv2d(hidden_dim, out_dim, 1)


class EMOStage(Stage):
    """Blocks, the first of which halves the map; it has twice the expansion and neither attention nor residual.

    Args:
        in_dim: Input channels.
        dim: Output channels.
        ratio: Expansion.
        head_dim: Channels per attention head; 0 for a stage without attention.
        drop_path_rates: Probability of dropping each block's branch.
    """

    def __init__(self, in_dim: int, dim: int, ratio: float, head_dim: int, drop_path_rates: list[float]):
        late = head_dim > 0
        super().__init__(
            MobileBlock(in_dim, dim, int(2 * ratio * in_dim), late, stride=2),
            (
                Residual(MobileBlock(dim, dim, int(ratio * dim), late, head_dim), DropPath(rate) if rate else None)
                for rate in drop_path_rates[1:]
            ),
        )


class EMO(Backbone):
    """EMO, from pictures (B, in_chans, H, W) of any size to logits (B, num_classes).

    Args:
        depths: Blocks of each stage.
        embed_dims: Channels of each stage.
        ratios: Expansion in the blocks of each stage.
        head_dims: Channels per attention head in each stage; 0 for none.
        num_classes: Classes; 0 returns pooled features (B, C).
        in_chans: Channels of the picture.
        global_pool: timm's pooling name; ``""`` leaves the map unpooled.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it rises linearly to this over the blocks.

    Raises:
        ConfigError: As :func:`~mobilemamba.models.backbone.check_ends`.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        embed_dims: tuple[int, ...],
        ratios: tuple[float, ...],
        head_dims: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        check_ends(num_classes, global_pool, in_chans)
        rates = drop_path_rates(drop_path_rate, depths)
        stages = zip((STEM_DIM, *embed_dims[:-1]), embed_dims, ratios, head_dims, rates, strict=True)
        super().__init__(
            Stem(in_chans),
            (EMOStage(*stage) for stage in stages),
            embed_dims,
            4,
            LayerNorm2d(embed_dims[-1], eps=_EPS),
        )
        self.num_classes = num_classes
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, C, h, w) to logits (B, num_classes), or to pooled features (B, C)."""
        return self.head(x, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        """Returns the linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one for another number of classes; 0 removes it."""
        check_ends(num_classes, self.head.global_pool.pool_type if global_pool is None else global_pool)
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head.reset(num_classes, global_pool)
        self.head.to(like.device, like.dtype)


# Depths, channels, expansions and channels per head.
_SIZES = {
    "emo_1m": ((2, 2, 8, 3), (32, 48, 80, 168), (2, 2.5, 3, 3.5), (0, 0, 20, 21)),
    "emo_2m": ((3, 3, 9, 3), (32, 48, 120, 200), (2, 2.5, 3, 3.5), (0, 0, 20, 20)),
    "emo_5m": ((3, 3, 9, 3), (48, 72, 160, 288), (2, 3, 4, 4), (0, 0, 32, 32)),
    "emo_6m": ((3, 3, 9, 3), (48, 72, 160, 320), (2, 3, 4, 5), (0, 0, 20, 32)),
}

default_cfgs = generate_default_cfgs(
    {
        name: timm_cfg(
            224,
            32,
            first_conv="patch_embed.conv.conv",
            classifier="head.fc",
            paper_name="Rethinking Mobile Block for Efficient Attention-based Models",
            paper_ids="arXiv:2301.01146",
        )
        for name in _SIZES
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> EMO:
    size = dict(zip(("depths", "embed_dims", "ratios", "head_dims"), _SIZES[variant], strict=True))
    feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    return build_model_with_cfg(EMO, variant, pretrained, feature_cfg=feature_cfg, **{**size, **kwargs})


@register_model
def emo_1m(pretrained: bool = False, **kwargs: Any) -> EMO:
    """EMO-1M: 71.5 % top-1 in its paper, trained with a ``drop_path_rate`` of 0.04. Keywords as for ``EMO``."""
    return _create("emo_1m", pretrained, **kwargs)


@register_model
def emo_2m(pretrained: bool = False, **kwargs: Any) -> EMO:
    """EMO-2M: 75.1 % top-1 in its paper, trained with a ``drop_path_rate`` of 0.05. Keywords as for ``EMO``."""
    return _create("emo_2m", pretrained, **kwargs)


@register_model
def emo_5m(pretrained: bool = False, **kwargs: Any) -> EMO:
    """EMO-5M: 78.4 % top-1 in its paper, trained with a ``drop_path_rate`` of 0.05. Keywords as for ``EMO``."""
    return _create("emo_5m", pretrained, **kwargs)


@register_model
def emo_6m(pretrained: bool = False, **kwargs: Any) -> EMO:
    """EMO-6M: 79.0 % top-1 in its paper, trained with a ``drop_path_rate`` of 0.05. Keywords as for ``EMO``."""
    return _create("emo_6m", pretrained, **kwargs)
