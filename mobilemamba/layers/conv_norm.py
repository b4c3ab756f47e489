"""Convolution + BatchNorm and BatchNorm + linear, which fold into one convolution or linear layer for inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.layers.batch_norm import BatchNorm2d


class ConvReLU(nn.Conv2d):
    """A convolution followed by a ReLU: the layer that a ConvNorm with ReLU folds into."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ConvNorm(nn.Module):
    """A convolution without bias, then BatchNorm, then an optional ReLU; same padding, (B, C, H, W) in and out.

    Args:
        in_chans: Input channels.
        out_chans: Output channels.
        kernel_size: Odd kernel size.
        stride: Stride.
        groups: Groups; ``in_chans`` makes the convolution depthwise.
        gain: Initial weight of the norm; 0 makes a residual branch start at zero.
        relu: Whether a ReLU comes last; it runs in one pass with the norm where possible.
        dilation: Distance between the kernel's taps.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        gain: float = 1.0,
        relu: bool = False,
        dilation: int = 1,
    ):
        super().__init__()
        self.relu = relu
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, dilation, groups, bias=False)
        self.norm = BatchNorm2d(out_chans)
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        x = _of_one_column(self.conv, x) if self.training and _harms_gradient(self.conv, x) else self.conv(x)
        if isinstance(self.norm, BatchNorm2d):
            return self.norm(x, self.relu)
        x = self.norm(x)  # e.g. a SyncBatchNorm in its place
        return F.relu(x) if self.relu else x

    def fuse(self) -> nn.Module:
        """Returns one convolution with the norm's running statistics folded in; itself if that is impossible."""
        if not folds(self.norm) or type(self.conv) is not nn.Conv2d:
            return self
        return fuse_conv_norm(self.conv, self.norm, ConvReLU if self.relu else nn.Conv2d)


def _harms_gradient(conv: nn.Module, x: Tensor) -> bool:
    """Whether oneDNN leaves uninitialised memory in the gradient of the kernel's columns that meet only padding.

    It does so in bfloat16 for strided convolutions of maps one pixel wide, such as those of small pictures.
    """
    if type(conv) is not nn.Conv2d or conv.stride == (1, 1) or isinstance(x, torch.fx.Proxy):
        return False
    if x.shape[-1] > 1 or x.device.type != "cpu":
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == torch.bfloat16


def _of_one_column(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolves maps one pixel wide by the only column of the kernel that meets them."""
    middle = conv.weight.narrow(3, conv.kernel_size[1] // 2, 1)
    padding = (conv.kernel_size[0] // 2 * conv.dilation[0], 0)
    return F.conv2d(x, middle, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


class NormLinear(nn.Module):
    """BatchNorm, then a linear layer: the classifier. (B, C) in, (B, classes) out.

    Args:
        in_features: Input width.
        out_features: Number of classes; 0 makes the layer the identity, norm included.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm1d(in_features) if out_features else nn.Identity()
        self.linear: nn.Module = nn.Linear(in_features, out_features) if out_features else nn.Identity()
        if isinstance(self.linear, nn.Linear):
            nn.init.trunc_normal_(self.linear.weight, std=0.02)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Returns one equivalent linear layer; itself if that is impossible."""
        norm, linear = self.norm, self.linear
        if isinstance(norm, nn.Identity):
            return linear
        if not folds(norm) or type(linear) is not nn.Linear:
            return self
        scale, shift = _affine(norm)
        fused = nn.utils.skip_init(
            nn.Linear, linear.in_features, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype
        )
        fused.weight.copy_(linear.weight * scale)
        fused.bias.copy_(linear.weight @ shift + (0 if linear.bias is None else linear.bias))
        return fused


#: Norms that, if they track statistics, are an affine map of each channel in evaluation.
_FOLDING = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d, nn.SyncBatchNorm)


def folds(norm: nn.Module) -> bool:
    """Returns whether a norm can be folded into its neighbour; False for any class that is not known."""
    return type(norm) in _FOLDING and norm.running_var is not None


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the (scale, shift), both (C,), that a foldable norm applies to each channel in evaluation."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale
    return scale, norm.bias + shift if norm.affine else shift


@torch.no_grad()
def fuse_conv_norm(conv: nn.Conv2d, norm: nn.Module, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    """Folds ``norm(conv(x))`` in evaluation into one convolution of class ``kind``, with the same device and dtype."""
    scale, shift = _affine(norm)
    fused = nn.utils.skip_init(
        kind,
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    fused.weight.copy_(conv.weight * scale[:, None, None, None])
    fused.bias.copy_(shift if conv.bias is None else shift + conv.bias * scale)
    return fused
