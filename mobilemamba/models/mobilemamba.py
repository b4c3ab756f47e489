"""MobileMamba (He et al., CVPR 2025): three stages of MRFFI blocks on a stride-16 stem, top to bottom as in Fig. 4.

    picture (B, in_chans, H, W)
      patch_embed            stride 16
      stages.0               blocks at 1/16
      stages.1, stages.2     downsample, then blocks, at 1/32 and 1/64
      head                   average pool, BatchNorm, linear

With ``stem_stride=4`` the stages are at 1/4, 1/8, and so on: the four-stage networks of Fig. 3.

A block is ``x + DropPath(F(x))``, where F consists of dw0, ffn0, mixer, dw1 and ffn1, each of them residual. The mixer
is the MRFFI module; the blocks of a CNN stage have none. The last norm of every residual branch is initialised with
gain zero, so a fresh block doubles its input.
"""

from __future__ import annotations

from timm.layers import DropPath, SelectAdaptivePool2d
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.layers.conv_norm import ConvNorm, NormLinear
from mobilemamba.layers.ffn import FFN
from mobilemamba.layers.global_mixer import GLOBAL_MIXERS
from mobilemamba.layers.kernels import use_scan_backend
from mobilemamba.layers.local_conv import MultiKernelConv
from mobilemamba.layers.mrffi import MRFFI
from mobilemamba.layers.patch import PatchEmbed, PatchMerging
from mobilemamba.layers.residual import Residual
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletConv, WaveletMamba
from mobilemamba.models.backbone import Backbone, Stage, check_ends, drop_path_rates
from mobilemamba.models.config import MobileMambaConfig
from mobilemamba.models.release_names import Released, StateDict, ours_to_release, release_to_ours


def depthwise(dim: int, gain: float) -> Residual:
    """Builds a residual 3x3 depthwise convolution."""
    return Residual(ConvNorm(dim, dim, 3, groups=dim, gain=gain))


def build_mixer(config: MobileMambaConfig, stage: int) -> MRFFI | None:
    """Builds the MRFFI module of a stage's blocks; None for a CNN stage."""
    if config.stage_kinds[stage] == "cnn":
        return None
    splits = global_dim, local_dim, _ = config.channel_splits[stage]
    global_mixer: nn.Module = nn.Identity()
    if global_dim:
        if config.global_mixer == "mamba":
            global_mixer = SS2D(global_dim, config.directions, config.d_state, config.ssm_ratio, config.dt_rank)
        else:
            global_mixer = GLOBAL_MIXERS[config.global_mixer](global_dim)
        if config.wavelet != "none":
            wavelet_conv = WaveletConv(global_dim, config.wavelet_kernels[stage], config.wavelet)
            global_mixer = WaveletMamba(global_mixer, wavelet_conv, global_dim)
    local_mixer = MultiKernelConv(local_dim, config.stage_kernels[stage]) if local_dim else nn.Identity()
    return MRFFI(splits, global_mixer, local_mixer)


class MobileMambaBlock(nn.Sequential):
    """F: depthwise, feed-forward, mixer (if any), depthwise, feed-forward, each residual; (B, C, H, W) in and out."""

    def __init__(self, dim: int, mixer: nn.Module | None, ffn_ratio: float):
        super().__init__()
        self.dw0 = depthwise(dim, gain=0.0)
        self.ffn0 = Residual(FFN(dim, ffn_ratio))
        if mixer is not None:
            self.mixer = Residual(mixer)
        self.dw1 = depthwise(dim, gain=0.0)
        self.ffn1 = Residual(FFN(dim, ffn_ratio))


class Downsample(nn.Sequential):
    """Patch merging between depthwise and feed-forward layers, (B, C, H, W) to (B, C', H/2, W/2)."""

    def __init__(self, dim: int, out_dim: int, ffn_ratio: float):
        super().__init__()
        self.dw0 = depthwise(dim, gain=1.0)
        self.ffn0 = Residual(FFN(dim, ffn_ratio))
        self.merge = PatchMerging(dim, out_dim)
        self.dw1 = depthwise(out_dim, gain=1.0)
        self.ffn1 = Residual(FFN(out_dim, ffn_ratio))


class MobileMambaStage(Stage):
    """Downsampling, except in the first stage, then blocks.

    Args:
        config: Architecture of the network.
        stage: Index of the stage.
        drop_path_rates: Probability of dropping each block's branch.
    """

    def __init__(self, config: MobileMambaConfig, stage: int, drop_path_rates: list[float]):
        dim = config.embed_dims[stage]
        super().__init__(
            Downsample(config.embed_dims[stage - 1], dim, config.ffn_ratio) if stage else nn.Identity(),
            (
                Residual(
                    MobileMambaBlock(dim, build_mixer(config, stage), config.ffn_ratio),
                    DropPath(rate) if rate else None,
                )
                for rate in drop_path_rates
            ),
        )


class MobileMamba(Backbone, Released):
    """MobileMamba, from pictures (B, in_chans, H, W) of at least 32 px a side to logits (B, num_classes).

    Args:
        config: The architecture.
        num_classes: Classes; 0 returns pooled features (B, C).
        in_chans: Channels of the picture.
        global_pool: timm's pooling name; ``""`` leaves the map unpooled.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it rises linearly to this over the blocks.
        scan_backend: Backend of the scans, see ``mobilemamba backends``; ``reference``, the definition, also keeps
            every other layer from using compiled kernels.
        distilled: Whether to add a second classifier ``head_dist``, trained on a teacher's answers (Touvron et al.,
            "Training data-efficient image transformers", 2021); the logits are then the mean of both.

    Raises:
        ConfigError: If ``scan_backend`` is unknown, or as :func:`~mobilemamba.models.backbone.check_ends`.
    """

    def __init__(
        self,
        config: MobileMambaConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        scan_backend: str = "auto",
        distilled: bool = False,
    ):
        check_ends(num_classes, global_pool, in_chans)
        rates = drop_path_rates(drop_path_rate, config.depths)
        super().__init__(
            PatchEmbed(in_chans, config.embed_dims[0], config.stem_stride),
            (MobileMambaStage(config, i, stage_rates) for i, stage_rates in enumerate(rates)),
            config.embed_dims,
            config.stem_stride,
        )
        self.config = config
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_drop = nn.Dropout(drop_rate)
        pooled = self.num_features * self.global_pool.feat_mult()
        self.head = NormLinear(pooled, num_classes)
        self.head_dist = NormLinear(pooled, num_classes) if distilled else None
        use_scan_backend(self, scan_backend)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, C, h, w) to logits (B, num_classes), or to pooled features (B, C) before the classifier's norm."""
        x = self.head_drop(self.global_pool(x))
        if pre_logits:
            return x
        return self.head(x) if self.head_dist is None else (self.head(x) + self.head_dist(x)) / 2

    def forward_heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, in_chans, H, W) to both classifiers' logits, (B, num_classes) each, for training with a teacher.

        Returns:
            The logits to compare with the labels, and those to compare with the teacher.

        Raises:
            ConfigError: If the network has only one classifier.
        """
        if self.head_dist is None:
            raise ConfigError("the network has one classifier; build it with distilled=True to have two")
        x = self.forward_head(self.forward_features(x), pre_logits=True)
        return self.head(x), self.head_dist(x)

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Returns the linear layer, or both of them for two classifiers, as timm's other distilled models do."""
        heads = [self.head] if self.head_dist is None else [self.head, self.head_dist]
        linear = tuple(head.linear if isinstance(head, NormLinear) else head for head in heads)
        return linear if len(linear) > 1 else linear[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces each classifier and its norm by fresh ones for another number of classes; 0 removes them."""
        check_ends(num_classes, self.global_pool.pool_type if global_pool is None else global_pool)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        like = next(self.parameters())
        for name in ("head", "head_dist"):
            if getattr(self, name) is not None:
                head = NormLinear(self.num_features * self.global_pool.feat_mult(), num_classes)
                setattr(self, name, head.to(like.device, like.dtype).train(self.training))

    def from_release(self, state: StateDict) -> StateDict:
        return release_to_ours(state, self.config.directions)

    def to_release(self, state: StateDict) -> StateDict:
        return ours_to_release(state)

    def no_weight_decay(self) -> set[str]:
        """Returns the parameters that weight decay would harm: state matrix, step-size biases, skip weights, scales."""
        leaves = ("A_log", "D", "dt_bias", "scale", "decay", "bonus", "mix")
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in leaves}
