"""MobileMamba's architecture as data: the choices, their limits, and the six published sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from mobilemamba.errors import ConfigError

#: Global channels come in multiples of this, so that every published model can be cut into heads of 16 channels.
CHANNEL_MULTIPLE = 16


@dataclass(frozen=True)
class MobileMambaConfig:
    """One MobileMamba network; the defaults are S6 (Tables 2 and 3 of the paper). Sequences have one entry a stage.

    Attributes:
        embed_dims: Channels.
        depths: Number of blocks.
        global_ratio: The paper's xi: share of the channels that the wavelet-enhanced Mamba mixes.
        local_ratio: The paper's mu: share of the channels that the multi-kernel depthwise convolution mixes.
        kernel_sizes: Odd kernel size of the local convolution; several (``((7, 5, 3), 5, 3)``) share its channels.
        wavelet_kernel_sizes: Odd kernel size of the convolution between the wavelet transforms; by default the
            (first) entry of ``kernel_sizes``.
        wavelet: PyWavelets name of an orthogonal wavelet; ``"none"`` leaves the wavelet branch out (Table 8f).
        directions: Scan directions of the state-space model: 1, 2 (rows, both ways) or 4 (columns too).
        d_state: State size N of the scan.
        ssm_ratio: Inner width of the state-space model over its input width.
        dt_rank: Rank of the step-size projection, ``"auto"`` for ``ceil(channels / 16)``.
        ffn_ratio: Hidden width of the feed-forward layers over their input width.

    Raises:
        ConfigError: If a value is impossible; the message computes one that works.
    """

    embed_dims: tuple[int, ...] = (192, 384, 448)
    depths: tuple[int, ...] = (1, 2, 2)
    global_ratio: tuple[float, ...] = (0.8, 0.7, 0.6)
    local_ratio: tuple[float, ...] = (0.2, 0.2, 0.3)
    kernel_sizes: tuple[int | tuple[int, ...], ...] = (7, 5, 3)
    wavelet_kernel_sizes: tuple[int, ...] | None = None
    wavelet: str = "db1"
    directions: Literal[1, 2, 4] = 2
    d_state: int = 1
    ssm_ratio: float = 2.0
    dt_rank: int | Literal["auto"] = "auto"
    ffn_ratio: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):  # YAML and keyword arguments bring lists; tuples keep the dataclass hashable
            value = getattr(self, field.name)
            if isinstance(value, list | tuple):
                frozen = tuple(tuple(item) if isinstance(item, list) else item for item in value)
                object.__setattr__(self, field.name, frozen)
        self._check()

    def _check(self) -> None:
        stages = len(self.embed_dims)
        for name in ("depths", "global_ratio", "local_ratio", "kernel_sizes", "wavelet_kernel_sizes"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, tuple) or len(value) != stages):
                raise ConfigError(
                    f"{name}={value} needs one entry for each of the {stages} stages of {self.embed_dims=}"
                )
        if stages == 0 or min(self.embed_dims) < 8:
            raise ConfigError(
                f"embed_dims={self.embed_dims}: every stage needs at least 8 channels, e.g. (192, 384, 448)"
            )
        if min(self.depths) < 1:
            raise ConfigError(f"depths={self.depths}: every stage needs at least one block, e.g. (1, 2, 2)")
        if self.directions not in (1, 2, 4):
            raise ConfigError(f"directions={self.directions}: expected 1, 2 or 4")
        if self.d_state < 1:
            raise ConfigError(f"d_state={self.d_state}: expected 1 or more")
        if self.dt_rank != "auto" and (not isinstance(self.dt_rank, int) or self.dt_rank < 1):
            raise ConfigError(f"dt_rank={self.dt_rank!r}: expected 'auto' or 1 or more")
        for name in ("ssm_ratio", "ffn_ratio"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number above 0, e.g. 2")
        for kernels in (*self.stage_kernels, self.wavelet_kernels):
            for kernel in kernels:
                if kernel < 1 or kernel % 2 == 0:
                    raise ConfigError(f"kernel size {kernel}: expected an odd number, e.g. {max(3, kernel + 1)}")
        for (_, local, _), kernels in zip(self.channel_splits, self.stage_kernels, strict=True):
            if 0 < local < len(kernels):
                raise ConfigError(f"{len(kernels)} kernels {kernels} for {local} local channels: raise local_ratio")

    @property
    def stage_kernels(self) -> tuple[tuple[int, ...], ...]:
        """Kernel sizes of the local convolution, always as a tuple a stage."""
        return tuple((k,) if isinstance(k, int) else k for k in self.kernel_sizes)

    @property
    def wavelet_kernels(self) -> tuple[int, ...]:
        """Kernel size of the wavelet-domain convolution of each stage."""
        return self.wavelet_kernel_sizes or tuple(kernels[0] for kernels in self.stage_kernels)

    @property
    def channel_splits(self) -> tuple[tuple[int, int, int], ...]:
        """(global, local, identity) channels of each stage."""
        return tuple(map(split_channels, self.embed_dims, self.global_ratio, self.local_ratio))

    def override(self, **changes: Any) -> MobileMambaConfig:
        """A copy with some choices changed.

        Raises:
            ConfigError: If a name is no architecture choice, or the result is impossible.
        """
        known = [field.name for field in fields(self)]
        if unknown := sorted(set(changes) - set(known)):
            raise ConfigError(f"unknown architecture choice {', '.join(unknown)}; expected some of: {', '.join(known)}")
        return replace(self, **changes)


def split_channels(dim: int, global_ratio: float, local_ratio: float) -> tuple[int, int, int]:
    """Cuts ``dim`` channels into global, local and identity parts as the released models do.

    The global part is truncated, then rounded to the nearest multiple of 16 (ties up); the local part is truncated and
    yields where both would exceed ``dim``; the rest is left as it is.

    Raises:
        ConfigError: If a ratio is outside [0, 1], their sum exceeds 1, or rounding up exceeds ``dim``.
    """
    for name, ratio in (("global_ratio", global_ratio), ("local_ratio", local_ratio)):
        if not 0 <= ratio <= 1:
            raise ConfigError(f"{name}={ratio}: expected 0 to 1; the nearest valid ratio is {min(max(ratio, 0), 1)}")
    if global_ratio + local_ratio > 1 + 1e-6:
        raise ConfigError(
            f"global_ratio={global_ratio} and local_ratio={local_ratio} take more than all {dim} channels; "
            f"with this global_ratio, local_ratio can be at most {math.floor((1 - global_ratio + 1e-6) * 1000) / 1000}"
        )
    global_dim = (int(global_ratio * dim) + CHANNEL_MULTIPLE // 2) // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE
    if global_dim > dim:
        below = dim // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE
        ratio = math.ceil(below / dim * 1000) / 1000
        raise ConfigError(
            f"global_ratio={global_ratio} of {dim} channels rounds up to {global_dim}, more than there are; use "
            f"global_ratio={ratio} ({below} channels) or embed_dim={global_dim}"
        )
    local_dim = min(int(local_ratio * dim), dim - global_dim)
    return global_dim, local_dim, dim - global_dim - local_dim


@dataclass(frozen=True)
class Variant:
    """A published model and the paper's numbers for it (Tables 2 and 3).

    Attributes:
        config: The network.
        img_size: Side of the square picture that the numbers are for, in pixels.
        paper_top1: ImageNet-1k top-1 in %, 300 epochs, without distillation.
        paper_params_m: Parameters in millions.
        paper_flops_m: FLOPs in millions.
    """

    config: MobileMambaConfig
    img_size: int
    paper_top1: float
    paper_params_m: float
    paper_flops_m: int


_B = MobileMambaConfig(embed_dims=(200, 376, 448), depths=(2, 3, 2))

VARIANTS = {
    "mobilemamba_t2": Variant(MobileMambaConfig(embed_dims=(144, 272, 368)), 192, 73.6, 8.8, 255),
    "mobilemamba_t4": Variant(MobileMambaConfig(embed_dims=(176, 368, 448)), 192, 76.1, 14.2, 413),
    "mobilemamba_s6": Variant(MobileMambaConfig(), 224, 78.0, 15.0, 652),
    "mobilemamba_b1": Variant(_B, 256, 79.9, 17.1, 1080),
    "mobilemamba_b2": Variant(_B, 384, 81.6, 17.1, 2427),
    "mobilemamba_b4": Variant(_B, 512, 82.5, 17.1, 4313),
}


@dataclass
class ArchOverrides:
    """Architecture choices laid over a MobileMamba variant; None keeps the variant's own.

    See :class:`MobileMambaConfig` for the meaning of each; a test holds the two lists of names together.
    """

    embed_dims: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    global_ratio: tuple[float, ...] | None = None
    local_ratio: tuple[float, ...] | None = None
    kernel_sizes: tuple[int | tuple[int, ...], ...] | None = None
    wavelet_kernel_sizes: tuple[int, ...] | None = None
    wavelet: str | None = None
    directions: Literal[1, 2, 4] | None = None
    d_state: int | None = None
    ssm_ratio: float | None = None
    dt_rank: int | Literal["auto"] | None = None
    ffn_ratio: float | None = None

    def given(self) -> dict[str, Any]:
        """The choices that were made."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
