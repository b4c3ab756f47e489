"""The network's layers in the fewest steps for a runtime; each is built from the norm-free layer.

Shape letters: B batch, C channels, H and W sides, L = H * W, K scan directions, D inner width, N state size, R rank of
the step size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.export.lowering import onnx_functions
from mobilemamba.export.lowering.convolution import conv2d, numbers
from mobilemamba.export.lowering.scan import recurrence, softplus
from mobilemamba.export.lowering.stem import Stem
from mobilemamba.export.lowering.wavelet import lowered_wavelet
from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.local_conv import MultiKernelConv
from mobilemamba.layers.mrffi import MRFFI
from mobilemamba.layers.patch import PatchEmbed, PatchMerging
from mobilemamba.layers.residual import Residual
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletMamba


class Scan(nn.Module):
    """The scan's projections, the scan in every direction and LayerNorm; (B, H, W, D) in and out.

    Args:
        ss2d: The layer that they belong to.
    """

    def __init__(self, ss2d: SS2D):
        super().__init__()
        K, D = ss2d.D.shape
        self.widths = [ss2d.dt_rank + 1, ss2d.d_state, ss2d.d_state]
        # One more low-rank step size, which is always 1, carries the bias.
        dt_KRD, BC_KND = ss2d.x_proj_weight.split([ss2d.dt_rank, 2 * ss2d.d_state], 1)
        projection_KCD = torch.cat([dt_KRD, dt_KRD.new_zeros(K, 1, D), BC_KND], 1)
        one_C = F.one_hot(torch.tensor(ss2d.dt_rank), sum(self.widths)).to(dt_KRD)
        expansion_KRD = torch.cat([ss2d.dt_proj_weight.transpose(1, 2), ss2d.dt_bias[:, None]], 1)
        for name, value in (
            ("projection_KDC", projection_KCD.transpose(1, 2)),
            ("one_C", one_C),
            ("expansion_KRD", expansion_KRD),
            ("A_KND", -torch.exp(ss2d.A_log.float()).transpose(1, 2)),
            ("minus_skip_D", -ss2d.D.sum(0)),
        ):
            self.register_buffer(name, value.detach().contiguous())
        self.states, self.norm = ss2d.d_state, ss2d.out_norm

    projection_KDC: Tensor
    one_C: Tensor
    expansion_KRD: Tensor
    A_KND: Tensor
    minus_skip_D: Tensor

    def forward(self, u_BHWD: Tensor) -> Tensor:
        u_BKLD = self.by_step(u_BHWD)
        dt_BKLR, B_BKLN, C_BKLN = (u_BKLD @ self.projection_KDC + self.one_C).split(self.widths, -1)
        dt_BKLD = softplus((dt_BKLR @ self.expansion_KRD).float())
        A_KND, drive_BKLD = self.A_KND.float(), dt_BKLD * u_BKLD
        if self.states == 1:
            y_BKLD = self.recur(torch.exp(dt_BKLD * A_KND), drive_BKLD * B_BKLN) * C_BKLN
        else:
            decay = torch.exp(dt_BKLD.unsqueeze(-2) * A_KND.unsqueeze(-3))
            h_BKLND = self.recur(decay, drive_BKLD.unsqueeze(-2) * B_BKLN.unsqueeze(-1))
            y_BKLD = (C_BKLN.unsqueeze(-2).float() @ h_BKLND).squeeze(-2)
        y_BHWD = self.merge(y_BKLD, u_BHWD)
        # Not ``y + u * D``: ONNX Runtime fuses a sum with the LayerNorm that follows into an operator that takes four
        # times as long.
        return self.norm((y_BHWD - u_BHWD * self.minus_skip_D).to(u_BHWD.dtype))

    def recur(self, decay_BKLX: Tensor, drive_BKLX: Tensor) -> Tensor:
        """Returns the states after each step; X is D, or N and D."""
        return recurrence(*(x.flatten(3).flatten(0, 1) for x in (decay_BKLX, drive_BKLX))).view_as(drive_BKLX)

    def by_step(self, u_BHWD: Tensor) -> Tensor:
        """Returns every direction's sequence."""
        u_BLD = u_BHWD.flatten(1, 2)
        if len(self.A_KND) == 1:
            return u_BLD.unsqueeze(1)
        orders = _orders(len(self.A_KND), *u_BHWD.shape[1:3])
        return u_BLD.index_select(1, torch.tensor(orders).flatten()).unflatten(1, (len(orders), -1))

    def merge(self, y_BKLD: Tensor, like_BHWD: Tensor) -> Tensor:
        """Puts every direction's results back in place and sums them."""
        if y_BKLD.shape[1] == 1:
            return y_BKLD.view_as(like_BHWD)
        length, y_BMD = y_BKLD.shape[2], y_BKLD.flatten(1, 2)  # M = K * L
        y_BLD = y_BMD.narrow(1, 0, length)
        for direction, order in enumerate(_orders(y_BKLD.shape[1], *like_BHWD.shape[1:3])):
            if direction:
                steps = sorted(range(length), key=order.__getitem__)
                y_BLD = y_BLD + y_BMD.index_select(1, torch.tensor(steps) + direction * length)
        return y_BLD.view_as(like_BHWD)


class AnySizeScan(Scan):
    """A :class:`Scan` for maps of any size, which keeps (B, K, H, W, D) where that has sequences (B, K, L, D)."""

    def __init__(self, ss2d: SS2D):
        super().__init__(ss2d)
        for name in ("projection_KDC", "expansion_KRD", "A_KND"):
            self.register_buffer(name, getattr(self, name).unsqueeze(1))

    def recur(self, decay_BKLX: Tensor, drive_BKLX: Tensor) -> Tensor:
        return onnx_functions.recurrence(decay_BKLX, drive_BKLX)

    def by_step(self, u_BHWD: Tensor) -> Tensor:
        return u_BHWD.unsqueeze(1)

    def merge(self, y_BKLD: Tensor, like_BHWD: Tensor) -> Tensor:
        return y_BKLD.sum(1)


def _orders(directions: int, height: int, width: int) -> list[list[int]]:
    """Returns ``scan_order`` as plain lists, which a tracer does not see."""
    rows = list(range(height * width))
    columns = [row * width + column for column in range(width) for row in range(height)]
    forwards = [rows] if directions < 4 else [rows, columns]
    return [*forwards, *(order[::-1] for order in forwards)][:directions]


class GlobalPart(nn.Module):
    """WTE-Mamba, or SS2D alone, followed by ReLU; (B, C, H, W) in and out.

    Args:
        mixer: The layer.
        any_size: Whether maps may have any size; see ``onnx_functions``.
    """

    def __init__(self, mixer: WaveletMamba | SS2D, *, any_size: bool = False):
        super().__init__()
        ss2d = mixer.ss2d if isinstance(mixer, WaveletMamba) else mixer
        assert isinstance(ss2d, SS2D)
        into, out = numbers(ss2d.in_proj), numbers(ss2d.out_proj)
        scale_C = mixer.scale.detach().flatten() if isinstance(mixer, WaveletMamba) else torch.ones(len(out[1]))
        # Two convolutions, because the halves of a single result would have to be copied.
        self.into, self.gate = (conv2d(weight, bias) for weight, bias in zip(*(x.chunk(2) for x in into), strict=True))
        self.conv, self.scan = ss2d.conv, (AnySizeScan if any_size else Scan)(ss2d)
        bias_C = out[1] * scale_C
        self.register_buffer("out_DC", (out[0].flatten(1).T * scale_C).contiguous())
        self.register_buffer("bias_C", bias_C)
        self.wavelet = None
        if isinstance(mixer, WaveletMamba):
            self.wavelet = lowered_wavelet(mixer.wavelet_conv, bias_C, any_size=any_size)

    out_DC: Tensor
    bias_C: Tensor

    def forward(self, x: Tensor) -> Tensor:
        u_BHWD = F.silu(self.conv(self.into(x)).permute(0, 2, 3, 1))
        gate_BHWD = F.silu(self.gate(x).permute(0, 2, 3, 1))
        y_BHWC = (self.scan(u_BHWD) * gate_BHWD) @ self.out_DC
        y_BHWC = y_BHWC + (self.bias_C if self.wavelet is None else self.wavelet(x))
        return F.relu(y_BHWC).permute(0, 3, 1, 2)


class LocalPart(nn.Module):
    """The local and the unmixed channels, with their ReLU, as one depthwise convolution; (B, C, H, W) in and out.

    An unmixed channel has a kernel with a single 1; smaller kernels are centred in the largest.

    Args:
        mixer: The local channels' layer; any other module than a ``MultiKernelConv`` means that there are none.
        identity: Number of further channels that are unmixed.
    """

    def __init__(self, mixer: nn.Module, identity: int):
        super().__init__()
        parts = list(mixer.parts) if isinstance(mixer, MultiKernelConv) else []
        convs, affines = ([numbers(list(part.children())[i]) for part in parts] for i in (0, 1))
        if identity:
            ones, zeros = torch.ones(identity, 1, 1, 1), torch.zeros(identity)
            convs, affines = [*convs, (ones, zeros)], [*affines, (ones, zeros)]
        kernel = max(weight.shape[-1] for weight, _ in convs)
        kernels = [F.pad(weight, [(kernel - weight.shape[-1]) // 2] * 4) for weight, _ in convs]
        channels = sum(map(len, kernels))
        self.conv = conv2d(torch.cat(kernels), torch.cat([b for _, b in convs]), 1, kernel // 2, channels)
        self.affine: nn.Module | None = None
        if parts:
            weights, biases = zip(*affines, strict=True)
            self.affine = conv2d(torch.cat(weights), torch.cat(biases), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return x if self.affine is None else F.relu(self.affine(x))


class MixedResidual(nn.Module):
    """x + MRFFI(x), with a separate projection of each part to avoid a concatenation; (B, C, H, W) in and out.

    Args:
        mrffi: The layer.
        any_size: Whether maps may have any size; see ``onnx_functions``.

    Raises:
        ConfigError: If the global part takes one size only.
    """

    def __init__(self, mrffi: MRFFI, *, any_size: bool = False):
        super().__init__()
        weight, bias = numbers(mrffi.proj)
        width, local, identity = mrffi.splits
        self.widths: list[int] = []
        parts: list[nn.Module] = []
        if width:
            mixer: nn.Module = mrffi.global_mixer
            inner = mixer.ss2d if isinstance(mixer, WaveletMamba) else mixer
            self.widths.append(width)
            if isinstance(mixer, SS2D | WaveletMamba) and isinstance(inner, SS2D):
                parts.append(GlobalPart(mixer, any_size=any_size))
            elif any_size:
                raise ConfigError(
                    f"--size dynamic: {type(inner).__name__} in the place of Mamba is laid out for one size of "
                    "pictures; give it in pixels"
                )
            else:
                parts.append(nn.Sequential(mixer, nn.ReLU()))
        if local + identity:
            self.widths.append(local + identity)
            parts.append(LocalPart(mrffi.local_mixer, identity) if local else nn.ReLU())
        self.parts = nn.ModuleList(parts)
        last = len(parts) - 1
        self.projections = nn.ModuleList(
            conv2d(share, bias if part == last else None) for part, share in enumerate(weight.split(self.widths, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        y, start = x, sum(self.widths)
        for width, part, projection in reversed(list(zip(self.widths, self.parts, self.projections, strict=True))):
            start -= width
            y = projection(part(x.narrow(1, start, width))) + y
        return y


class Merging(nn.Module):
    """Patch merging that averages by a pooling operator."""

    def __init__(self, merging: PatchMerging, *, any_size: bool = False):
        super().__init__()
        self.pool = Pooling(any_size=any_size)
        self.expand, self.dw, self.se, self.project = merging.expand, merging.dw, merging.se, merging.project

    def forward(self, x: Tensor) -> Tensor:
        x = self.dw(self.expand(x))
        gate = self.se.fc2(F.relu(self.se.fc1(self.pool(x))))
        return self.project(x * torch.sigmoid(gate))


class Pooling(nn.Module):
    """The average over the map, by a pooling operator if its size is known; (B, C, H, W) to (B, C, 1, 1)."""

    def __init__(self, *, any_size: bool = False):
        super().__init__()
        self.any_size = any_size

    def forward(self, x: Tensor) -> Tensor:
        known = not self.any_size and all(isinstance(side, int) for side in x.shape[2:])  # else traced for any size
        return F.avg_pool2d(x, x.shape[2:]) if known else x.mean((2, 3), keepdim=True)


def replacement(layer: nn.Module, *, any_size: bool = False) -> nn.Module | None:
    """Returns the layer to compute in place of a norm-free one; None to keep the layer itself."""
    if any(isinstance(part, ConvNorm) for part in layer.modules()):  # with a norm that could not be folded
        return None
    if isinstance(layer, Residual) and isinstance(layer.branch, MRFFI):
        return MixedResidual(layer.branch, any_size=any_size)
    if isinstance(layer, PatchMerging):
        return Merging(layer, any_size=any_size)
    if isinstance(layer, PatchEmbed):
        return Stem(layer)
    if isinstance(layer, SelectAdaptivePool2d) and layer.pool_type == "avg" and isinstance(layer.flatten, nn.Flatten):
        return nn.Sequential(Pooling(any_size=any_size), nn.Flatten())
    return None
