"""LayerNorm in half precision under autocast."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from mobilemamba.ops.operator import autocasts, without_autocast


@register_notrace_module  # a single node for torch.fx, as PyTorch's is
class LayerNorm(nn.LayerNorm):
    """LayerNorm whose result keeps the input's dtype under autocast as well; PyTorch's becomes float32 on a GPU there.

    What follows would become float32 with it, and take twice the memory. The sums are in float32 in any case.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not autocasts(x.device):
            return super().forward(x)
        weight, bias = (None if v is None else v.to(x.dtype) for v in (self.weight, self.bias))
        with without_autocast(x.device):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
