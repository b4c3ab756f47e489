"""MobileMamba's architecture as data: its choices, their limits, and the six published sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from mobilemamba.errors import ConfigError

#: The mixers of the global channels, and the kinds of a stage's blocks.
GlobalMixer = Literal["mamba", "ttt", "mlstm", "rwkv6", "attention", "identity"]
StageKind = Literal["mobilemamba", "cnn"]

#: The number of global channels is a multiple of this, so that every published model can have heads of 16 channels.
CHANNEL_MULTIPLE = 16

#: The largest value of each choice, far beyond any network's: a larger one is a slip that would ask for terabytes.
_MOST = {
    "embed_dims": 16_384,
    "depths": 1_024,
    "kernel_sizes": 1_023,
    "wavelet_kernel_sizes": 1_023,
    "d_state": 4_096,
    "ssm_ratio": 64,
    "dt_rank": 16_384,
    "ffn_ratio": 64,
}

_MAMBA_CHOICES = ("directions", "d_state", "ssm_ratio", "dt_rank")


@dataclass(frozen=True)
class MobileMambaConfig:
    """Architecture of a MobileMamba, by default S6 (Tables 2 and 3 of the paper). Tuples have one entry per stage.

    Four-stage networks (Fig. 3) have four entries and ``stem_stride=4``; the paper does not give their widths.

    Attributes:
        embed_dims: Channels.
        depths: Number of blocks.
        global_ratio: The paper's xi: share of the channels that the wavelet-enhanced Mamba mixes.
        local_ratio: The paper's mu: share of the channels that the multi-kernel depthwise convolution mixes.
        kernel_sizes: Odd kernel size of the local convolution; several (``((7, 5, 3), 5, 3)``) share its channels.
        wavelet_kernel_sizes: Odd kernel size of the convolution between the wavelet transforms; by default the (first)
            entry of ``kernel_sizes``.
        wavelet: PyWavelets name of an orthogonal wavelet; ``"none"`` leaves the wavelet branch out (Table 8f).
        global_mixer: What mixes the global channels beside the wavelet branch (Table 1): ``"mamba"``, ``"ttt"``
            (TTT-Linear), ``"mlstm"`` (xLSTM), ``"rwkv6"``, ``"attention"``, or ``"identity"`` for nothing. The next
            four attributes are for ``"mamba"`` only.
        directions: Scan directions of the state-space model: 1, 2 (rows, both ways) or 4 (columns too).
        d_state: State size N of the scan.
        ssm_ratio: Inner width of the state-space model divided by its input width.
        dt_rank: Rank of the step-size projection, ``"auto"`` for ``ceil(channels / 16)``.
        ffn_ratio: Hidden width of the feed-forward layers divided by their input width.
        stages: ``"mobilemamba"``, or ``"cnn"`` for blocks without the token mixer, which ignore ratios and kernel
            sizes. By default all stages are ``"mobilemamba"``.
        stem_stride: Stride of the first stage, 4 or 16; each later stage doubles it.

    Raises:
        ConfigError: If a value is impossible; the message suggests one that works.
    """

    embed_dims: tuple[int, ...] = (192, 384, 448)
    depths: tuple[int, ...] = (1, 2, 2)
    global_ratio: tuple[float, ...] = (0.8, 0.7, 0.6)
    local_ratio: tuple[float, ...] = (0.2, 0.2, 0.3)
    kernel_sizes: tuple[int | tuple[int, ...], ...] = (7, 5, 3)
    wavelet_kernel_sizes: tuple[int, ...] | None = None
    wavelet: str = "db1"
    global_mixer: GlobalMixer = "mamba"
    directions: Literal[1, 2, 4] = 2
    d_state: int = 1
    ssm_ratio: float = 2.0
    dt_rank: int | Literal["auto"] = "auto"
    ffn_ratio: float = 2.0
    stages: tuple[StageKind, ...] | None = None
    stem_stride: Literal[4, 16] = 16

    def __post_init__(self) -> None:
        for field in fields(self):  # YAML and keyword arguments may hold lists; tuples keep the dataclass hashable
            value = getattr(self, field.name)
            if isinstance(value, list | tuple):
                frozen = tuple(tuple(item) if isinstance(item, list) else item for item in value)
                object.__setattr__(self, field.name, frozen)
        self._check()

    def _check(self) -> None:
        stages = len(self.embed_dims)
        for name in ("depths", "global_ratio", "local_ratio", "kernel_sizes", "wavelet_kernel_sizes", "stages"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, tuple) or len(value) != stages):
                raise ConfigError(
                    f"{name}={value} needs one entry for each of the {stages} stages of embed_dims={self.embed_dims}"
                )
        for name, most in _MOST.items():
            if any(not number <= most for number in _numbers(getattr(self, name))):
                raise ConfigError(f"{name}={getattr(self, name)}: expected at most {most:,}")
        if stages == 0 or min(self.embed_dims) < 8:
            raise ConfigError(
                f"embed_dims={self.embed_dims}: every stage needs at least 8 channels, e.g. (192, 384, 448)"
            )
        if min(self.depths) < 1:
            raise ConfigError(f"depths={self.depths}: every stage needs at least one block, e.g. (1, 2, 2)")
        for kind in self.stage_kinds:
            if kind not in get_args(StageKind):
                raise ConfigError(f"stages={self.stages}: expected {' or '.join(get_args(StageKind))} for each stage")
        if self.stem_stride not in (4, 16):
            raise ConfigError(f"stem_stride={self.stem_stride}: expected 4 or 16")
        if self.global_mixer not in get_args(GlobalMixer):
            names = ", ".join(get_args(GlobalMixer))
            raise ConfigError(f"unknown global_mixer {self.global_mixer!r}; expected one of {names}")
        if self.global_mixer != "mamba":
            self._refuse_mamba_choices()
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

    def _refuse_mamba_choices(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _MAMBA_CHOICES and value != field.default:
                raise ConfigError(
                    f"{field.name}={value} is a choice of global_mixer='mamba'; leave it out with "
                    f"global_mixer={self.global_mixer!r}"
                )

    @property
    def stage_kinds(self) -> tuple[StageKind, ...]:
        """Kind of each stage's blocks."""
        kind: StageKind = "mobilemamba"
        return self.stages or (kind,) * len(self.embed_dims)

    @property
    def stage_kernels(self) -> tuple[tuple[int, ...], ...]:
        """Kernel sizes of each stage's local convolution, always as a tuple."""
        return tuple((k,) if isinstance(k, int) else k for k in self.kernel_sizes)

    @property
    def wavelet_kernels(self) -> tuple[int, ...]:
        """Kernel size of each stage's wavelet-domain convolution."""
        return self.wavelet_kernel_sizes or tuple(kernels[0] for kernels in self.stage_kernels)

    @property
    def channel_splits(self) -> tuple[tuple[int, int, int], ...]:
        """(global, local, identity) channels of each stage; a CNN stage leaves all channels unchanged."""
        return tuple(
            split_channels(dim, *ratios) if kind == "mobilemamba" else (0, 0, dim)
            for kind, dim, *ratios in zip(
                self.stage_kinds, self.embed_dims, self.global_ratio, self.local_ratio, strict=True
            )
        )

    def override(self, **changes: Any) -> MobileMambaConfig:
        """Returns a copy with some choices changed.

        Raises:
            ConfigError: If a name is not an architecture choice, or the result is impossible.
        """
        known = [field.name for field in fields(self)]
        if unknown := sorted(set(changes) - set(known)):
            raise ConfigError(f"unknown architecture choice {', '.join(unknown)}; expected some of: {', '.join(known)}")
        return replace(self, **changes)


def split_channels(dim: int, global_ratio: float, local_ratio: float) -> tuple[int, int, int]:
    """Splits ``dim`` channels into global, local and identity parts, as in the released models.

    The global part is truncated, then rounded to the nearest multiple of 16 (ties up); the local part is truncated, and
    reduced if both would exceed ``dim``; the rest is left unchanged.

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


def _numbers(value: Any) -> list[float]:
    """Returns all numbers in the value of an architecture choice."""
    if isinstance(value, tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


@dataclass(frozen=True)
class Variant:
    """A published model and the paper's numbers for it (Tables 2 and 3).

    Attributes:
        config: Architecture of the network.
        img_size: Side in pixels of the square pictures that the numbers are for.
        paper_top1: ImageNet-1k top-1 in %, 300 epochs, without distillation.
        paper_params_m: Parameters in millions.
        paper_flops_m: FLOPs in millions.
        drop_path_rate: Stochastic depth it was trained with.
    """

    config: MobileMambaConfig
    img_size: int
    paper_top1: float
    paper_params_m: float
    paper_flops_m: int
    drop_path_rate: float = 0.0


_B = MobileMambaConfig(embed_dims=(200, 376, 448), depths=(2, 3, 2))

VARIANTS = {
    "mobilemamba_t2": Variant(MobileMambaConfig(embed_dims=(144, 272, 368)), 192, 73.6, 8.8, 255),
    "mobilemamba_t4": Variant(MobileMambaConfig(embed_dims=(176, 368, 448)), 192, 76.1, 14.2, 413),
    "mobilemamba_s6": Variant(MobileMambaConfig(), 224, 78.0, 15.0, 652),
    "mobilemamba_b1": Variant(_B, 256, 79.9, 17.1, 1080, 0.03),
    "mobilemamba_b2": Variant(_B, 384, 81.6, 17.1, 2427, 0.03),
    "mobilemamba_b4": Variant(_B, 512, 82.5, 17.1, 4313, 0.03),
}


@dataclass
class ArchOverrides:
    """Changes to the architecture of a MobileMamba variant; None keeps the variant's own choice.

    See :class:`MobileMambaConfig` for the meaning of each; a test checks that both classes have the same names.
    """

    embed_dims: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    global_ratio: tuple[float, ...] | None = None
    local_ratio: tuple[float, ...] | None = None
    kernel_sizes: tuple[int | tuple[int, ...], ...] | None = None
    wavelet_kernel_sizes: tuple[int, ...] | None = None
    wavelet: str | None = None
    global_mixer: GlobalMixer | None = None
    directions: Literal[1, 2, 4] | None = None
    d_state: int | None = None
    ssm_ratio: float | None = None
    dt_rank: int | Literal["auto"] | None = None
    ffn_ratio: float | None = None
    stages: tuple[StageKind, ...] | None = None
    stem_stride: Literal[4, 16] | None = None

    def given(self) -> dict[str, Any]:
        """Returns the choices that are not None."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
