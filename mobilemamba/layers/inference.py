"""The network's layers as a CPU runs them in inference: weights laid out beforehand, element-wise steps fused.

Each is built from the norm-free layer that it stands for and computes the same, in channels-last memory; layers of the
network keep their interface, (B, C, H, W) in and out. None has gradients. The convolutions are oneDNN's, as
torch.compile calls them, except small depthwise ones; the rest is this package's compiled kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm, ConvReLU
from mobilemamba.layers.ffn import FFN
from mobilemamba.layers.local_conv import MultiKernelConv
from mobilemamba.layers.mrffi import MRFFI
from mobilemamba.layers.patch import PatchEmbed, PatchMerging
from mobilemamba.layers.residual import Residual
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletMamba
from mobilemamba.ops.depthwise import ACTIVATIONS, Activation, depthwise_conv
from mobilemamba.ops.mix_channels import mix_channels
from mobilemamba.ops.scan_norm_gate import scan_norm_gate
from mobilemamba.ops.wavelet.native import by_band

#: Pictures that go through the patch embedding at a time, so that its large maps stay in the cache.
_CHUNK = 8

#: Numbers in a map up to which our depthwise convolution is done before oneDNN's, which takes longer to call.
_SMALL = 2**16


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class _Packed(nn.Module):
    """What both kinds of convolution hold; the packed weight is the weight as oneDNN lays it out, made at first use."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, act: Activation = "none"):
        super().__init__()
        self.act = act
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.packed: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weight, which can neither be copied nor saved."""
        return self.__dict__ | {"packed": None}


class PackedConv(_Packed):
    """A convolution with bias and activation in one pass; (B, C, H, W) in and out.

    Args:
        weight: (out, in / groups, kernel, kernel), float32 or bfloat16.
        bias: (out,), or none.
        stride: Stride; the padding is ``kernel // 2``.
        groups: Groups.
        act: Activation of the result.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, stride: int = 1, groups: int = 1, act: Activation = "none"
    ):
        super().__init__(weight, bias, act)
        self.geometry = ([weight.shape[-1] // 2] * 2, [stride] * 2, [1, 1], groups)
        self.depthwise: tuple[Tensor, Tensor] | None = None
        if groups == len(weight) and weight.shape[1] == stride == 1 and weight.shape[-1] % 2:
            bias = weight.new_zeros(groups) if bias is None else bias
            self.depthwise = _float(weight[:, 0].permute(1, 2, 0)), _float(bias)

    @classmethod
    def of(cls, conv: nn.Module) -> PackedConv:
        """The same convolution, with the ReLU that it may end with."""
        assert isinstance(conv, nn.Conv2d)
        act: Activation = "relu" if isinstance(conv, ConvReLU) else "none"
        return cls(conv.weight, conv.bias, conv.stride[0], conv.groups, act)

    def _packed_for(self, x: Tensor) -> Tensor:
        """The weight in oneDNN's layout for maps of x's size, kept until another size comes.

        A layout made for another size computes the same, but oneDNN may then make its own in every call.
        """
        size = x.shape[2:]
        if self.packed is None or self.packed[0] != size:
            weight, shape = self.weight.contiguous(), [1, self.weight.shape[1] * self.geometry[-1], *size]
            self.packed = size, torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, shape)
        return self.packed[1]

    def forward(self, x: Tensor) -> Tensor:
        if _is_traced():  # the compiler lays out and fuses itself, and an export is to run anywhere
            padding, stride, dilation, groups = self.geometry
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            return ACTIVATIONS[self.act](y)
        if self.depthwise is not None and x.numel() <= _SMALL:
            return _first(depthwise_conv(_last(x), *self.depthwise, self.act))
        packed = self._packed_for(x)
        return torch.ops.mkldnn._convolution_pointwise(x, packed, self.bias, *self.geometry, self.act, [], "")


class PackedLinear(_Packed):
    """A 1x1 convolution with bias, and an activation or an addition, in one pass; (B, H, W, C) in and out.

    Args:
        weight: (out, in), float32 or bfloat16.
        bias: (out,), or none.
        act: Activation of the result, if nothing is added.
    """

    @classmethod
    def of(cls, conv: nn.Module, act: Activation = "none") -> PackedLinear:
        """The same 1x1 convolution, with an activation that follows it or its own ReLU."""
        assert isinstance(conv, nn.Conv2d)
        return cls(conv.weight.flatten(1), conv.bias, "relu" if isinstance(conv, ConvReLU) else act)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if _is_traced():
            y = F.linear(x, self.weight, self.bias)
            return ACTIVATIONS[self.act](y) if add is None else y + add
        mkldnn = torch.ops.mkldnn
        if self.packed is None:
            self.packed = mkldnn._reorder_linear_weight(self.weight.contiguous())
        if add is None:
            return mkldnn._linear_pointwise(x, self.packed, self.bias, self.act, [], "")
        return mkldnn._linear_pointwise.binary(x, add, self.packed, self.bias, "add")


class InferenceFFN(nn.Module):
    """x + FFN(x)."""

    def __init__(self, ffn: FFN):
        super().__init__()
        self.pw1, self.pw2 = PackedLinear.of(ffn.pw1), PackedLinear.of(ffn.pw2)

    def forward(self, x: Tensor) -> Tensor:
        x = _last(x)
        return _first(self.pw2(self.pw1(x), add=x))


class InferencePatchEmbed(nn.Sequential):
    """Patch embedding."""

    def __init__(self, patch_embed: PatchEmbed):
        super().__init__(*map(PackedConv.of, patch_embed))

    def forward(self, x: Tensor) -> Tensor:
        if _is_traced() or len(x) <= _CHUNK:
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
        x = _last(self.dw(_first(self.expand(_last(x)))))
        return _first(self.project(x * self.excite(self.squeeze(x.mean((1, 2), keepdim=True)))))


class InferenceSS2D(nn.Module):
    """SS2D, times a scale; (B, H, W, C) in and out.

    Args:
        ss2d: The layer.
        scale: One number a channel, or one for all; any shape.
    """

    def __init__(self, ss2d: SS2D, scale: Tensor):
        super().__init__()
        into, out = ss2d.in_proj, ss2d.out_proj
        assert isinstance(into, nn.Conv2d)
        assert isinstance(out, nn.Conv2d)
        assert into.bias is not None
        assert out.bias is not None
        dtype, scale = out.weight.dtype, scale.float().flatten()
        # Apart, as the halves of one result would have to be copied.
        halves = zip(into.weight.flatten(1).chunk(2), into.bias.chunk(2), strict=True)
        self.u_proj, self.gate_proj = (PackedLinear(weight, bias) for weight, bias in halves)
        self.conv = PackedConv(ss2d.conv.weight, ss2d.conv.bias, groups=ss2d.conv.groups, act="swish")
        self.x_proj = PackedLinear(ss2d.x_proj_weight.flatten(0, 1).to(dtype))
        out_weight = out.weight.flatten(1) * scale.view(-1, 1)
        self.out_proj = PackedLinear(out_weight.to(dtype), (out.bias * scale).to(dtype))
        self.dt_weight = _float(ss2d.dt_proj_weight.transpose(1, 2))
        self.A = -torch.exp(ss2d.A_log.float())
        self.D, self.dt_bias = _float(ss2d.D), _float(ss2d.dt_bias)
        self.norm_weight, self.norm_bias = _float(ss2d.out_norm.weight), _float(ss2d.out_norm.bias)
        self.norm_eps = ss2d.out_norm.eps

    def forward(self, x: Tensor) -> Tensor:
        u, gate = _last(self.conv(_first(self.u_proj(x)))), self.gate_proj(x)
        weights = (self.dt_weight, self.A, self.D, self.dt_bias, self.norm_weight, self.norm_bias, self.norm_eps)
        return self.out_proj(scan_norm_gate(u, self.x_proj(u), gate, *weights))


class InferenceMRFFI(nn.Module):
    """x + MRFFI(x), with a state-space module as the global mixer, with or without its wavelet branch."""

    def __init__(self, mrffi: MRFFI):
        super().__init__()
        mixer: nn.Module = mrffi.global_mixer
        scale: Tensor = torch.ones(1)
        self.global_dim, local_dim, _ = mrffi.splits
        self.wavelet_weight: Tensor | None = None
        if isinstance(mixer, WaveletMamba):
            wavelet = mixer.wavelet_conv
            self.wavelet_weight = by_band(wavelet.conv.weight * wavelet.scale.view(-1, 1, 1, 1))
            scale = mixer.scale.data
            mixer = mixer.ss2d
        assert isinstance(mixer, SS2D)
        self.ss2d = InferenceSS2D(mixer, scale)
        self.local_weights: list[Tensor] = []
        if local_dim:
            assert isinstance(mrffi.local_mixer, MultiKernelConv)
            for part in mrffi.local_mixer.parts:
                conv, affine = (layer for layer in part.children() if isinstance(layer, nn.Conv2d))
                kernel = conv.weight[:, 0].permute(1, 2, 0)
                self.local_weights += map(_float, (kernel, conv.bias, affine.weight.flatten(), affine.bias))
        self.proj = PackedLinear.of(mrffi.proj)

    def forward(self, x: Tensor) -> Tensor:
        x = _last(x)
        mixed = self.ss2d(x[..., : self.global_dim].contiguous())
        return _first(self.proj(mix_channels(x, mixed, self.wavelet_weight, self.local_weights), add=x))


def replacement(layer: nn.Module) -> nn.Module | None:
    """The inference layer of a norm-free layer or of a residual branch's ``x + branch(x)``; None if there is none."""
    if any(isinstance(part, ConvNorm) for part in layer.modules()):  # its norm is of a class that does not fold
        return None
    branch = layer.branch if isinstance(layer, Residual) else None
    if isinstance(branch, FFN):
        return InferenceFFN(branch)
    if isinstance(branch, MRFFI) and _fits(branch):
        return InferenceMRFFI(branch)
    if isinstance(layer, PatchEmbed):
        return InferencePatchEmbed(layer)
    if isinstance(layer, PatchMerging):
        return InferencePatchMerging(layer)
    if isinstance(layer, nn.Conv2d) and type(layer) in (nn.Conv2d, ConvReLU) and _keeps_size(layer):
        return PackedConv.of(layer)
    return None


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Whether it is square, with zeros around, and makes the map smaller by its stride only."""
    kernel = conv.kernel_size[0]
    geometry = (conv.kernel_size, conv.padding, conv.dilation, conv.stride)
    return conv.padding_mode == "zeros" and geometry == (
        (kernel, kernel),
        (kernel // 2, kernel // 2),
        (1, 1),
        (conv.stride[0], conv.stride[0]),
    )


def _fits(mrffi: MRFFI) -> bool:
    """Whether the compiled kernels do all of it: Mamba, and Haar's wavelet or none."""
    mixer = mrffi.global_mixer
    if isinstance(mixer, WaveletMamba):
        return mixer.wavelet_conv.is_haar and isinstance(mixer.ss2d, SS2D)
    return isinstance(mixer, SS2D)


def _float(x: Tensor | None) -> Tensor:
    assert x is not None
    return x.detach().float().contiguous()


def _last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.permute(0, 2, 3, 1)


def _first(x_BHWC: Tensor) -> Tensor:
    return x_BHWC.permute(0, 3, 1, 2)
