"""Analysis of a network's blocks: attention of the scan, contributions of the branches, and wavelet sub-bands.

Shape letters: B batch, C channels, H and W sides of a map (h and w of a sub-band), K scan directions, D inner width,
N state size, S steps of a direction until a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.layers.mrffi import MRFFI
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletConv, WaveletMamba
from mobilemamba.models.evaluation import evaluating
from mobilemamba.ops.scan_order import scan_order
from mobilemamba.ops.selective_scan import ScanInputs
from mobilemamba.ops.wavelet.definition import dwt2d

Layer = TypeVar("Layer", bound=nn.Module)

#: The sub-bands in order, and what each shows; the first letter is for the height, the second for the width.
BANDS = {"LL": "coarse", "HL": "horizontal edges", "LH": "vertical edges", "HH": "diagonals"}


@dataclass(frozen=True)
class ScanAttention:
    """Weights of the inputs at all positions in a scan's output at one position, in fp64 on the CPU.

    Attributes:
        position: (row, column) of the output on the map.
        by_direction: (K, H, W), weights of each direction, in the order of ``scan_order``.
        summed: (H, W), sum over the directions, as the layer adds their outputs.
        skip: (K,), D, the weight by which each direction adds the input at the position itself; not in the maps.
    """

    position: tuple[int, int]
    by_direction: Tensor
    summed: Tensor
    skip: Tensor


def scan_attention(
    model: nn.Module,
    picture: Tensor,
    layer: str,
    position: tuple[int, int] | None = None,
    channel: int | None = None,
    absolute: bool = False,
) -> ScanAttention:
    """Computes the attention of a selective scan, which is linear in its input u for given dt, B and C.

    The weight of u at s in the output at t is ``sum_n C_t[n] exp(sum_{s<r<=t} A[n] dt_r) dt_s B_s[n]``, for every s
    that the direction has visited by t. With one state (N = 1), all channels have the sign of ``C_t B_s``.

    Args:
        model: A network with SS2D layers. It runs once, in evaluation mode and in its own dtype.
        picture: (C, H, W) or (1, C, H, W), prepared for the network.
        layer: Name of an SS2D layer, or of a module that contains only one, e.g. the block ``"stages.1.blocks.0"``.
        position: (row, column) on the layer's map; by default the middle.
        channel: One of the D inner channels; by default the mean over all.
        absolute: Whether to average magnitudes, as weights of both signs would cancel.

    Raises:
        ConfigError: If there is no such layer, position or channel, or more than one picture.
    """
    ss2d = find_layer(model, SS2D, layer)
    pictures = picture if picture.ndim == 4 else picture[None]
    if len(pictures) != 1:
        raise ConfigError(f"{len(pictures)} pictures; the attention is of one scan, give one picture")
    seen: list[Tensor] = []
    _watch(model, pictures, [ss2d], lambda _, x_BCHW: seen.append(ss2d.expand(x_BCHW)[0]))
    inner, height, width = seen[0].shape[1:]
    row, column = position = (height // 2, width // 2) if position is None else position
    if not (0 <= row < height and 0 <= column < width):
        raise ConfigError(f"position {position}: the layer's map has {height} rows and {width} columns, from 0")
    if channel is not None and not 0 <= channel < inner:
        raise ConfigError(f"channel {channel}: the scan has {inner}, from 0")

    with torch.no_grad():
        inputs = ScanInputs(*(x.cpu().double() for x in ss2d.scan_inputs(seen[0])))

    def of_channels(x_D: Tensor) -> Tensor:
        x = x_D if channel is None else x_D[..., channel, None]
        return (x.abs() if absolute else x).mean(-1)

    weights_KHWD = attention_weights(inputs, (height, width), (row, column))
    return ScanAttention((row, column), *(of_channels(x) for x in (weights_KHWD, weights_KHWD.sum(0), inputs.D)))


def attention_weights(inputs: ScanInputs, size: tuple[int, int], position: tuple[int, int]) -> Tensor:
    """Returns the weights of every channel, w_KHWD, for the first picture of the scan's inputs."""
    at = position[0] * size[1] + position[1]
    directions, inner = inputs.D.shape
    weights_KLD = inputs.dt.new_zeros(directions, size[0] * size[1], inner)
    for k, order in enumerate(scan_order(directions, size).long()):
        until = order[: int((order == at).nonzero()) + 1]
        dt_SD1 = F.softplus(inputs.dt[0, k, until] + inputs.dt_bias[k])[..., None]
        passed_SDN = (dt_SD1 * inputs.A[k]).cumsum(0)
        decay_SDN = torch.exp(passed_SDN[-1] - passed_SDN)  # decay over the steps after s
        taken_SDN = decay_SDN * dt_SD1 * inputs.B[0, k, until][:, None]
        weights_KLD[k, until] = taken_SDN @ inputs.C[0, k, at]
    return weights_KLD.unflatten(1, size)


@dataclass(frozen=True)
class BranchShares:
    """Shares of the branches in the output of a block's MRFFI module; the four sum to 1.

    All are NaN if the output is zero, as in a new network, in which the norms of the projections start with gain 0.

    Attributes:
        block: Name of the block.
        mixer: Share of the global mixer, Mamba or its replacement, including its scale.
        wavelet: Share of the wavelet branch.
        local: Share of the local convolution.
        identity: Share of the channels that are passed unchanged.
    """

    block: str
    mixer: float
    wavelet: float
    local: float
    identity: float


def branch_shares(model: nn.Module, pictures: Tensor) -> list[BranchShares]:
    """Computes the branches' shares in every block with an MRFFI module, in the order of the network.

    The module projects ``ReLU(concat(global, local, identity))``. In evaluation mode, the projection and its norm are
    affine, so each group of channels adds a separate map; a group's share is the mean absolute value of its map divided
    by the sum over all groups. Maps that cancel each other count in full; the norm's bias belongs to no group. Mamba
    and wavelet are summed before the ReLU: they divide the global group's share by their mean absolute values.

    Args:
        model: A network with MRFFI modules. It runs once, in evaluation mode.
        pictures: (B, C, H, W), over which means are taken.

    Raises:
        ConfigError: If there is no such module, as in a network optimized for inference.
    """
    modules = _layers(model, MRFFI)
    shares: dict[nn.Module, tuple[float, ...]] = {}

    def measure(mrffi: nn.Module, x_BCHW: Tensor) -> None:
        assert isinstance(mrffi, MRFFI)
        groups = list(x_BCHW.split(mrffi.splits, dim=1))
        mixed, wavelet = 1.0, 0.0
        mixer = mrffi.global_mixer
        if mrffi.splits[0] and isinstance(mixer, WaveletMamba):
            parts = mixer.scale * mixer.ss2d(groups[0]), mixer.wavelet_conv(groups[0])
            mixed, wavelet = (_mean_absolute(part) for part in parts)
            groups[0] = parts[0] + parts[1]
        elif mrffi.splits[0]:
            groups[0] = mixer(groups[0])
        if mrffi.splits[1]:
            groups[1] = mrffi.local_mixer(groups[1])
        apart = [[x if i == j else torch.zeros_like(x) for j, x in enumerate(groups)] for i in range(len(groups))]
        nothing = mrffi.proj(torch.zeros_like(x_BCHW[:1]))
        maps = (mrffi.proj(mrffi.act(torch.cat(alone, 1))) - nothing for alone in apart)
        of_global, local, identity = map(_mean_absolute, maps)
        mixed, wavelet = (of_global * part / ((mixed + wavelet) or 1.0) for part in (mixed, wavelet))
        total = mixed + wavelet + local + identity
        shares[mrffi] = tuple(x / total if total else torch.nan for x in (mixed, wavelet, local, identity))

    _watch(model, pictures, modules.values(), measure)
    return [BranchShares(_block(name), *shares[mrffi]) for name, mrffi in modules.items()]


def _mean_absolute(x: Tensor) -> float:
    return float(x.double().abs().mean()) if x.numel() else 0.0


@dataclass(frozen=True)
class SubBands:
    """The sub-bands of a wavelet branch, in the order of ``BANDS``.

    Attributes:
        before: (B, 4, h, w), sub-bands of the branch's input; h and w are half the map's sides, rounded up.
        after: (B, 4, h, w), sub-bands after the convolution, whose inverse transform is the branch's output.
    """

    before: Tensor
    after: Tensor


def sub_bands(model: nn.Module, pictures: Tensor, layer: str, channel: int | None = None) -> SubBands:
    """Computes the sub-bands in a wavelet branch before and after its convolution.

    Args:
        model: A network with a wavelet branch. It runs once, in evaluation mode.
        pictures: (B, C, H, W).
        layer: Name of a wavelet branch, or of a module that contains only one, e.g. the block ``"stages.1.blocks.0"``.
        channel: One of the branch's channels; by default the mean over all.

    Raises:
        ConfigError: If there is no such layer or channel.
    """
    branch = find_layer(model, WaveletConv, layer)
    channels = len(branch.dwt_filters) // 4
    if channel is not None and not 0 <= channel < channels:
        raise ConfigError(f"channel {channel}: the wavelet branch has {channels}, from 0")
    seen: list[Tensor] = []
    _watch(model, pictures, [branch], lambda _, x_BCHW: seen.append(dwt2d(x_BCHW, branch.dwt_filters)))
    with torch.no_grad():
        weight = branch.weight
        convolved = F.conv2d(seen[0], weight, padding=weight.shape[-1] // 2, groups=len(weight))
    before, after = (x.unflatten(1, (channels, 4)).cpu() for x in (seen[0], convolved))
    if channel is None:
        return SubBands(before.mean(1), after.mean(1))
    return SubBands(before[:, channel], after[:, channel])


def find_layer(model: nn.Module, kind: type[Layer], name: str) -> Layer:
    """Returns the layer of a class with a name, or the only such layer inside the module with that name.

    Raises:
        ConfigError: If there is not exactly one; lists the blocks that have such layers.
    """
    layers = _layers(model, kind)
    found = [layer for path, layer in layers.items() if f"{path}.".startswith(f"{name}." if name else "")]
    if len(found) != 1:
        blocks = ", ".join(map(_block, layers))
        raise ConfigError(f"{name!r} holds {len(found)} {kind.__name__} layers; expected one of the blocks {blocks}")
    return found[0]


def _layers(model: nn.Module, kind: type[Layer]) -> dict[str, Layer]:
    """Returns all layers of a class by name."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}
    if not layers:
        raise ConfigError(
            f"the {type(model).__name__} has no {kind.__name__} layer to look into; give a network that has one, as it "
            "was before optimize_for_inference, which puts others in their place"
        )
    return layers


def _block(layer: str) -> str:
    """Returns the name of the residual block that contains a layer."""
    return layer.partition(".branch.")[0]


@torch.no_grad()
def _watch(
    model: nn.Module, pictures: Tensor, layers: Iterable[nn.Module], look: Callable[[nn.Module, Tensor], None]
) -> None:
    """Runs a network once in evaluation mode and calls ``look`` with each layer and its input; restores the mode."""
    with ExitStack() as hooks, evaluating(model), torch.compiler.set_stance("force_eager"):  # compiled code runs none
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(lambda layer, inputs: look(layer, inputs[0])))
        model(pictures)
