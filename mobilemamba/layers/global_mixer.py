"""Modules that can replace Mamba in the MRFFI module (Table 1 of the paper), by their ``global_mixer`` name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mobilemamba.layers.attention import Attention
from mobilemamba.layers.mlstm import MLSTM
from mobilemamba.layers.rwkv6 import RWKV6
from mobilemamba.layers.ttt_linear import TTTLinear

#: Name to a function of the number of channels C that builds a module with (B, C, H, W) in and out.
GLOBAL_MIXERS: dict[str, Callable[[int], nn.Module]] = {
    "ttt": TTTLinear,
    "mlstm": MLSTM,
    "rwkv6": RWKV6,
    "attention": Attention,
    "identity": nn.Identity,
}
