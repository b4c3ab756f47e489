"""The network's layers for inference, with packed weights and fused element-wise steps.

Each is built from the norm-free layer that it replaces and computes the same, in channels-last memory; layers of the
network keep their interface, (B, C, H, W) in and out. None has gradients. Layers for which a device has no kernels stay
as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm, ConvReLU
from mobilemamba.layers.ffn import FFN
from mobilemamba.layers.local_conv import MultiKernelConv
from mobilemamba.layers.mrffi import MRFFI
from mobilemamba.layers.patch import PatchEmbed, PatchMerging
from mobilemamba.layers.residual import Residual
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletMamba
from mobilemamba.models.inference.packed import (
    PackedConv,
    PackedLinear,
    by_pytorch,
    channels_first,
    channels_last,
    floats,
    on_gpu,
)
from mobilemamba.models.inference.winograd import WIDE, WinogradConv
from mobilemamba.ops.backends import is_traced
from mobilemamba.ops.mix_channels import mix_channels
from mobilemamba.ops.scan_norm_gate import scan_norm_gate
from mobilemamba.ops.wavelet.native import by_band

#: The backend of the kernels that inference layers use, by device type.
KERNELS = {"cpu": "native", "cuda": "triton"}
#: Pictures that pass through the patch embedding at a time, so that its large maps stay in the cache.
_CHUNK = 8


class Floats(nn.Module):
    """Weights that stay in float32, as kernels read them, when a network is converted; saved and moved with it."""

    def __init__(self, tensors: Iterable[Tensor | None]):
        super().__init__()
        for i, x in enumerate(tensors):
            self.register_buffer(str(i), floats(x))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Floats:
        device = fn(next(iter(self), torch.empty(0)).new_empty(0)).device
        for name, x in self._buffers.items():
            assert x is not None
            self._buffers[name] = x.to(device)
        return self

    def __iter__(self) -> Iterator[Tensor]:
        return (x for x in self._buffers.values() if x is not None)


class InferenceFFN(nn.Module):
    """x + FFN(x) in one module."""

    def __init__(self, ffn: FFN):
        super().__init__()
        self.pw1, self.pw2 = PackedLinear.of(ffn.pw1), PackedLinear.of(ffn.pw2)

    def write_over(self, conv: PackedConv) -> None:
        """Makes the sum overwrite x on a GPU, where a matrix product can add in place; x must be for this layer only.

        The product adds no bias, so the convolution that makes x adds it, and ``pw1`` subtracts its effect again.
        """
        bias = self.pw2.bias
        if bias is None:  # done already
            return
        assert self.pw1.bias is not None
        assert conv.bias is not None
        self.pw1.bias.sub_(self.pw1.weight.float() @ bias.float())
        conv.bias.add_(bias)
        self.pw2.bias = None

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        hidden = self.pw1(x)
        in_place = self.pw2.bias is None and on_gpu(x) and not is_traced()
        return channels_first(self.pw2.add_to(x, hidden) if in_place else self.pw2(hidden, add=x))


class InferencePatchEmbed(nn.Sequential):
    """Patch embedding."""

    def __init__(self, patch_embed: PatchEmbed):
        super().__init__(*map(PackedConv.of, patch_embed))

    def forward(self, x: Tensor) -> Tensor:
        if by_pytorch(x) or x.ndim != 4 or len(x) <= _CHUNK:  # what is no batch is refused whole
            return super().forward(x)
        embed = super().forward
        return torch.cat([embed(part) for part in x.split(_CHUNK)])


class InferencePatchMerging(nn.Module):
    """Patch merging."""

    def __init__(self, merging: PatchMerging):
        super().__init__()
        self.expand, self.dw = PackedLinear.of(merging.expand), PackedConv.of(merging.dw)
        self.squeeze, self.excite = PackedLinear.of(merging.se.fc1, "relu"), PackedLinear.of(merging.se.fc2, "sigmoid")
        self.project = PackedLinear.of(merging.project)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(self.dw(channels_first(self.expand(channels_last(x)))))
        return channels_first(self.project(x * self.excite(self.squeeze(x.mean((1, 2), keepdim=True)))))


class InferenceSS2D(nn.Module):
    """SS2D times a scale; (B, H, W, C) in and out.

    Args:
        ss2d: The layer.
        scale: One number for each channel, or one for all, in any shape.
    """

    def __init__(self, ss2d: SS2D, scale: Tensor):
        super().__init__()
        into, out = ss2d.in_proj, ss2d.out_proj
        assert isinstance(into, nn.Conv2d)
        assert isinstance(out, nn.Conv2d)
        assert into.bias is not None
        assert out.bias is not None
        dtype, scale = out.weight.dtype, scale.float().flatten()
        # Two projections, because the halves of a single result would have to be copied.
        halves = zip(into.weight.flatten(1).chunk(2), into.bias.chunk(2), strict=True)
        self.u_proj, self.gate_proj = (PackedLinear(weight, bias) for weight, bias in halves)
        self.conv = PackedConv(ss2d.conv.weight, ss2d.conv.bias, groups=ss2d.conv.groups, act="swish")
        self.x_proj = PackedLinear(ss2d.x_proj_weight.flatten(0, 1).to(dtype))
        out_weight = out.weight.flatten(1) * scale.view(-1, 1)
        self.out_proj = PackedLinear(out_weight.to(dtype), (out.bias * scale).to(dtype))
        A, norm = -torch.exp(ss2d.A_log.float()), ss2d.out_norm
        weights = (ss2d.dt_proj_weight.transpose(1, 2), A, ss2d.D, ss2d.dt_bias, norm.weight, norm.bias)
        self.scan = Floats(weights)
        self.norm_eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        u, gate = channels_last(self.conv(channels_first(self.u_proj(x)))), self.gate_proj(x)
        weights = iter(self.scan)  # the compiler of PyTorch 2.11 cannot unpack the module itself
        return self.out_proj(scan_norm_gate(u, self.x_proj(u), gate, *weights, self.norm_eps))


class InferenceMixer(nn.Module):
    """SS2D, or WaveletMamba with any wavelet."""

    def __init__(self, mixer: SS2D | WaveletMamba):
        super().__init__()
        self.wavelet_conv = mixer.wavelet_conv if isinstance(mixer, WaveletMamba) else None
        ss2d, scale = _scaled(mixer)
        self.ss2d = InferenceSS2D(ss2d, scale)

    def forward(self, x: Tensor) -> Tensor:
        mixed = channels_first(self.ss2d(channels_last(x).contiguous()))
        return mixed if self.wavelet_conv is None else mixed + self.wavelet_conv(x)


class InferenceMRFFI(nn.Module):
    """x + MRFFI(x) with a state-space module as the global mixer, with or without its wavelet branch."""

    def __init__(self, mrffi: MRFFI):
        super().__init__()
        mixer: nn.Module = mrffi.global_mixer
        self.global_dim, local_dim, _ = mrffi.splits
        wavelet_weights = [by_band(mixer.wavelet_conv.weight)] if isinstance(mixer, WaveletMamba) else []
        self.ss2d = InferenceSS2D(*_scaled(mixer))
        local_weights: list[Tensor | None] = []
        if local_dim:
            assert isinstance(mrffi.local_mixer, MultiKernelConv)
            for part in mrffi.local_mixer.parts:
                conv, affine = (layer for layer in part.children() if isinstance(layer, nn.Conv2d))
                kernel = conv.weight[:, 0].permute(1, 2, 0)
                local_weights += (kernel, conv.bias, affine.weight.flatten(), affine.bias)
        self.wavelet, self.local = Floats(wavelet_weights), Floats(local_weights)
        self.proj = PackedLinear.of(mrffi.proj)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        part = x[..., : self.global_dim]
        mixed = self.ss2d(part if on_gpu(x) else part.contiguous())
        wavelet_weight = next(iter(self.wavelet), None)
        return channels_first(self.proj(mix_channels(x, mixed, wavelet_weight, list(self.local)), add=x))


def replacement(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module | None:
    """Returns the inference layer for a norm-free layer or a residual ``x + branch(x)``; None if there is none.

    Args:
        layer: A layer of the network.
        device: Device to run on.
        dtype: Dtype of its maps.
    """
    if any(isinstance(part, ConvNorm) for part in layer.modules()):  # with a norm that could not be folded
        return None
    branch = layer.branch if isinstance(layer, Residual) else None
    if isinstance(branch, FFN):
        return InferenceFFN(branch)
    if isinstance(branch, MRFFI) and _fits(branch, device, dtype):
        return InferenceMRFFI(branch)
    if isinstance(layer, PatchMerging):
        return InferencePatchMerging(layer)
    if isinstance(layer, SS2D | WaveletMamba) and device.type != "cpu" and _is_mamba(layer, device):
        return InferenceMixer(layer)
    if isinstance(layer, PatchEmbed):
        return InferencePatchEmbed(layer)
    if isinstance(layer, nn.Conv2d) and type(layer) in (nn.Conv2d, ConvReLU) and _keeps_size(layer):
        wide = layer.kernel_size == (3, 3) and layer.stride == (1, 1) and layer.groups == 1
        wide &= min(layer.in_channels, layer.out_channels) >= WIDE
        return (WinogradConv if wide else PackedConv).of(layer)
    return None


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Returns whether a convolution is square, zero-padded, and shrinks the map by its stride only."""
    kernel = conv.kernel_size[0]
    geometry = (conv.kernel_size, conv.padding, conv.dilation, conv.stride)
    return conv.padding_mode == "zeros" and geometry == (
        (kernel, kernel),
        (kernel // 2, kernel // 2),
        (1, 1),
        (conv.stride[0], conv.stride[0]),
    )


def _is_mamba(mixer: nn.Module, device: torch.device) -> bool:
    """Returns whether a mixer is SS2D, with or without the wavelet branch, and may use the device's kernels."""
    inner = mixer.ss2d if isinstance(mixer, WaveletMamba) else mixer
    return isinstance(inner, SS2D) and inner.backend in ("auto", KERNELS.get(device.type))


def _fits(mrffi: MRFFI, device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether there are kernels, and they cover the whole module: Mamba, and Haar's wavelet or none."""
    mixer = mrffi.global_mixer
    if not _is_mamba(mixer, device) or (isinstance(mixer, WaveletMamba) and not mixer.wavelet_conv.is_haar):
        return False
    return mix_channels.choose("auto", device, dtype).name != "reference"


def _scaled(mixer: nn.Module) -> tuple[SS2D, Tensor]:
    """Returns a mixer's SS2D and the scale of its result."""
    inner, scale = (mixer.ss2d, mixer.scale.data) if isinstance(mixer, WaveletMamba) else (mixer, torch.ones(1))
    assert isinstance(inner, SS2D)
    return inner, scale.to(inner.A_log.device)
