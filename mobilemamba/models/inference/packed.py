"""Convolutions for inference: on a CPU by oneDNN, or by our own kernel if small and depthwise; else by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.layers.conv_norm import ConvReLU
from mobilemamba.ops import onednn
from mobilemamba.ops.backends import is_traced
from mobilemamba.ops.depthwise import ACTIVATIONS, Activation, depthwise_conv
from mobilemamba.ops.operator import autocasts
from mobilemamba.ops.stem_conv import MOST, stem_conv

#: Elements of a map up to which our depthwise kernel is used on a CPU instead of oneDNN's, which takes longer to call.
_SMALL = 2**16
#: Packed forms of a weight that are kept: a head on several levels alternates between them.
_USES = 2


def on_gpu(x: Tensor) -> bool:
    """Returns whether the layout for a GPU computes a tensor."""
    return not x.is_cpu


def by_pytorch(x: Tensor) -> bool:
    """Returns whether PyTorch's own operators compute a tensor: on a GPU, as oneDNN is for CPUs, or if traced."""
    return on_gpu(x) or is_traced()


class _Packed(nn.Module):
    """Weight, bias and activation of both kinds of convolution, with packed forms of the weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, act: Activation = "none"):
        super().__init__()
        self.act = act
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._laid_out: dict[Hashable, tuple[Hashable, Any]] = {}

    def laid_out(self, x: Tensor, use: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the weight packed for a use, packing it anew if the weight or the use has changed.

        Raises:
            ConfigError: If x has not the weight's dtype and device.
        """
        weight = self.fitting(x)
        key = weight.data_ptr(), None if weight.is_inference() else weight._version
        kept, packed = self._laid_out.pop(use, (None, None))
        if kept != key:
            packed = make(weight)
            for oldest in [*self._laid_out][: 1 - _USES]:
                self._laid_out.pop(oldest, None)  # another thread may have done so
        self._laid_out[use] = key, packed  # in order of use
        return packed

    def fitting(self, x: Tensor) -> Tensor:
        """Returns the weight.

        Raises:
            ConfigError: If x has not the weight's dtype and device.
        """
        weight = self._parameters["weight"]  # in half the time of ``self.weight``
        assert weight is not None
        if x.dtype != weight.dtype or x.device != weight.device:
            what = "leave autocast out" if autocasts(x.device) else "convert its input"
            raise ConfigError(
                f"optimized for inference in {weight.dtype} on {weight.device}, the network got {x.dtype} on "
                f"{x.device}; {what}, or optimize the original for another dtype"
            )
        return weight

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out packed weights, which can be neither copied nor saved."""
        return self.__dict__ | {"_laid_out": {}}


class PackedConv(_Packed):
    """A convolution with bias and activation in one pass; (B, C, H, W) in and out.

    Args:
        weight: (out, in / groups, kernel, kernel), float32 or bfloat16.
        bias: (out,), or None.
        stride: Stride; the padding is ``kernel // 2``.
        groups: Groups.
        act: Activation of the result.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, stride: int = 1, groups: int = 1, act: Activation = "none"
    ):
        super().__init__(weight, weight.new_zeros(len(weight)) if bias is None else bias, act)
        self.geometry: onednn.Geometry = [weight.shape[-1] // 2] * 2, [stride] * 2, [1, 1], groups
        odd = weight.shape[-1] % 2 == 1
        self.is_depthwise = groups == len(weight) and weight.shape[1] == 1 and odd
        few = weight.shape[1] < 8 and weight[0].numel() <= MOST  # cuDNN would widen them to 8
        self.is_of_pictures = few and groups == 1 and odd and act in ("none", "relu")

    @classmethod
    def of(cls, conv: nn.Module) -> PackedConv:
        """Builds the same convolution, including its ReLU if it is a ConvReLU."""
        assert isinstance(conv, nn.Conv2d)
        act: Activation = "relu" if isinstance(conv, ConvReLU) else "none"
        return cls(conv.weight, conv.bias, conv.stride[0], conv.groups, act)

    def forward(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        if is_traced():
            return ACTIVATIONS[self.act](F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups))
        if x.ndim != 4:
            raise ConfigError(
                f"optimized for inference, the network got an input of shape {tuple(x.shape)}; expected a batch of "
                "pictures, (B, C, H, W); make one of a single picture (C, H, W) by x[None]"
            )
        if self.is_depthwise and (on_gpu(x) or (stride == [1, 1] and x.numel() <= _SMALL)):
            kernel = self.laid_out(x, "kkC", lambda weight: floats(weight[:, 0].permute(1, 2, 0)))
            return channels_first(depthwise_conv(channels_last(x), kernel, self.bias, self.act, stride[0]))
        if self.is_of_pictures and on_gpu(x):
            kernel = self.laid_out(x, "kkCD", lambda weight: weight.permute(2, 3, 1, 0).contiguous())
            return channels_first(stem_conv(channels_last(x), kernel, self.bias, stride[0], self.act == "relu"))
        if on_gpu(x):  # bias and activation in one pass; PyTorch would take two
            y = F.conv2d(x, self.fitting(x), None, stride, padding, dilation, groups)
            one = self.laid_out(x, "one", lambda weight: weight.new_ones(1, 1, len(weight), dtype=torch.float32))
            return channels_first(depthwise_conv(channels_last(y), one, self.bias, self.act))
        size = x.shape[2:]
        packed = self.laid_out(x, size, lambda weight: onednn.pack_convolution(weight, self.geometry, size))
        return onednn.convolution(x, packed, self.bias, self.geometry, self.act)


class PackedLinear(_Packed):
    """A 1x1 convolution with bias, and an activation or an addition, in one pass; (B, H, W, C) in and out.

    Args:
        weight: (out, in), float32 or bfloat16.
        bias: (out,), or None.
        act: Activation of the result, if nothing is added.
    """

    @classmethod
    def of(cls, conv: nn.Module, act: Activation = "none") -> PackedLinear:
        """Builds the same 1x1 convolution, with its own ReLU or an activation that follows it."""
        assert isinstance(conv, nn.Conv2d)
        return cls(conv.weight.flatten(1), conv.bias, "relu" if isinstance(conv, ConvReLU) else act)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if is_traced():
            y = F.linear(x, self.weight, self.bias)
            return ACTIVATIONS[self.act](y) if add is None else y + add
        if on_gpu(x):  # as matrices, possibly columns of a wider one
            rows, weight = x.flatten(0, -2), self.fitting(x).t()
            if self.bias is None:
                y = rows @ weight
            elif self.act == "relu":  # in one pass if cuBLAS can
                y = torch._addmm_activation(self.bias, rows, weight)
            else:
                y = ACTIVATIONS[self.act](torch.addmm(self.bias, rows, weight))
            y = y.unflatten(0, x.shape[:-1])
            return y if add is None else y + add
        return onednn.linear(x, self.laid_out(x, None, onednn.pack_linear), self.bias, self.act, add)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Adds the product with x to y, in y's memory; for a layer without bias and activation, on a GPU."""
        rows = y.flatten(0, -2).addmm_(x.flatten(0, -2), self.fitting(x).t())
        return rows.unflatten(0, y.shape[:-1])


def floats(x: Tensor | None) -> Tensor:
    """Returns a tensor detached, contiguous and in float32, as the compiled kernels read it."""
    assert x is not None
    return x.detach().float().contiguous()


def channels_last(x_BCHW: Tensor) -> Tensor:
    """Returns a view with the channels in the last dimension."""
    return x_BCHW.permute(0, 2, 3, 1)


def channels_first(x_BHWC: Tensor) -> Tensor:
    """Returns a view with the channels in the second dimension."""
    return x_BHWC.permute(0, 3, 1, 2)
