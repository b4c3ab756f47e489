"""What can stand in Mamba's place in the MRFFI module (Table 1 of the paper), by the names of ``global_mixer``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mobilemamba.layers.attention import Attention
from mobilemamba.layers.mlstm import MLSTM
from mobilemamba.layers.rwkv6 import RWKV6
from mobilemamba.layers.ttt_linear import TTTLinear

#: Name to a module from (B, C, H, W) to the same shape, built from the number of channels C.
GLOBAL_MIXERS: dict[str, Callable[[int], nn.Module]] = {
    "ttt": TTTLinear,
    "mlstm": MLSTM,
    "rwkv6": RWKV6,
    "attention": Attention,
    "identity": nn.Identity,
}
