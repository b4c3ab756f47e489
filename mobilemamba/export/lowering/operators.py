"""Decomposes every operator of ours that a traced network may have into plain ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from mobilemamba.export.lowering.scan import scan
from mobilemamba.ops import stem_conv
from mobilemamba.ops.backends import standard_operators
from mobilemamba.ops.depthwise import depthwise_conv
from mobilemamba.ops.mix_channels import mix_channels
from mobilemamba.ops.mlstm import mlstm
from mobilemamba.ops.rwkv6 import rwkv6
from mobilemamba.ops.scan_norm_gate import scan_norm_gate
from mobilemamba.ops.ttt_linear import ttt_linear
from mobilemamba.ops.wavelet.definition import haar_filters, wavelet_conv


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Returns the function that computes each operator, as ``ExportedProgram.run_decompositions`` takes them.

    Operators of training are left out: gradients, and norms by the batch's own statistics.
    """
    ours = torch.ops.mobilemamba
    plain: dict[Any, Callable[..., Tensor]] = {
        ours.depthwise_conv: depthwise_conv,
        ours.mix_channels: mix_channels,
        ours.scan_norm_gate: scan_norm_gate,
        ours.stem_conv: stem_conv.definition,
    }
    of_lists = {ours.mlstm: mlstm, ours.rwkv6: rwkv6, ours.ttt_linear: ttt_linear}
    return {
        ours.selective_scan.default: scan,
        ours.haar_conv.default: _haar_conv,
        **{operator.default: _by_standard_operators(function) for operator, function in plain.items()},
        **{operator.default: _of_list(_by_standard_operators(function)) for operator, function in of_lists.items()},
    }


def without_idle_steps(program: ExportedProgram) -> ExportedProgram:
    """Removes aliases, which Core ML does not know, and splits into a single part, which LiteRT refuses, in place."""
    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target == aten.alias.default:
            idle = [node]
        elif node.target in (aten.split.Tensor, aten.split_with_sizes.default) and len(node.meta["val"]) == 1:
            idle = [*node.users, node]
        else:
            continue
        if any(user.op == "output" for step in idle for user in step.users):  # the signature names its inputs
            continue
        for step in idle:
            step.replace_all_uses_with(node.args[0])
            program.graph.erase_node(step)
    program.graph_module.recompile()
    return program


def _by_standard_operators(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compute(*arguments: Any) -> Tensor:
        with standard_operators():
            return function(*arguments)

    return compute


def _of_list(function: Callable[..., Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    return lambda inputs: function(*inputs)


def _haar_conv(x_BHWC: Tensor, weight: Tensor) -> Tensor:
    filters = haar_filters(x_BHWC.shape[-1], x_BHWC)
    return wavelet_conv(x_BHWC.permute(0, 3, 1, 2), weight.to(x_BHWC), filters, filters).permute(0, 2, 3, 1)
