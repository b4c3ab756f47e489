"""The recurrence of RWKV-6 (Peng et al., "Eagle and Finch", arXiv:2404.05892): a decaying memory of outer products.

Shape letters: B batch, K scan directions, N heads, L sequence length, F width of a head, M chunks, S steps per chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.operator import as_operator

CHUNK = 16  # the pairs of steps within a chunk take S times the input's memory


def rwkv6_reference(
    r_BKNLF: Tensor, k_BKNLF: Tensor, v_BKNLF: Tensor, log_decay_BKNLF: Tensor, bonus_KNF: Tensor
) -> Tensor:
    """The definition: the recurrence step by step, in the inputs' dtype. Arguments as for ``rwkv6_chunked``."""
    state_BKNFF = r_BKNLF.new_zeros(*r_BKNLF.shape[:3], r_BKNLF.shape[-1], r_BKNLF.shape[-1])
    output = []
    for r, k, v, log_decay in zip(*(x.unbind(3) for x in (r_BKNLF, k_BKNLF, v_BKNLF, log_decay_BKNLF)), strict=True):
        now_BKNFF = k[..., None] * v[..., None, :]  # k v^T
        output.append((r[..., None] * (state_BKNFF + bonus_KNF[..., None] * now_BKNFF)).sum(-2))
        state_BKNFF = torch.exp(log_decay)[..., None] * state_BKNFF + now_BKNFF
    return torch.stack(output, dim=3)


def rwkv6_chunked(
    r_BKNLF: Tensor, k_BKNLF: Tensor, v_BKNLF: Tensor, log_decay_BKNLF: Tensor, bonus_KNF: Tensor
) -> Tensor:
    """``o_t = r_t^T (S_{t-1} + diag(u) k_t v_t^T)``, ``S_t = diag(w_t) S_{t-1} + k_t v_t^T``, from ``S = 0``.

    Within a chunk, all pairs of steps are computed at once; the state passes from chunk to chunk. Every exponent is at
    most 0.

    Args:
        r_BKNLF: Receptance: what each step reads.
        k_BKNLF: Key: where each step writes.
        v_BKNLF: Value: what each step writes.
        log_decay_BKNLF: log w, at most 0.
        bonus_KNF: u, the weight of the current step.

    Returns:
        o_BKNLF, of r's dtype, computed in fp32 (fp64 for fp64 input) whatever autocast says.
    """
    length = r_BKNLF.shape[3]
    padding = -length % CHUNK  # steps that add nothing and decay nothing
    r, k, v, log_decay = (
        F.pad(x, (0, 0, 0, padding)).unflatten(3, (-1, CHUNK)) for x in (r_BKNLF, k_BKNLF, v_BKNLF, log_decay_BKNLF)
    )
    after_BKNMSF = log_decay.cumsum(-2)  # log of the decay from the start of the chunk to the end of step s
    before_BKNMSF = after_BKNMSF - log_decay  # and to the start of step s
    earlier_SS = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=r.device).tril(-1)
    between = (before_BKNMSF[..., :, None, :] - after_BKNMSF[..., None, :, :]).masked_fill(
        ~earlier_SS[..., None], -torch.inf
    )
    pairs_BKNMSS = (r[..., :, None, :] * k[..., None, :, :] * torch.exp(between)).sum(-1)
    pairs_BKNMSS = pairs_BKNMSS + torch.diag_embed((r * bonus_KNF[:, :, None, None] * k).sum(-1))

    total_BKNMF1 = torch.exp(after_BKNMSF[..., -1, :, None])
    added_BKNMFF = (k * torch.exp(after_BKNMSF[..., -1:, :] - after_BKNMSF)).mT @ v
    state_BKNFF = torch.zeros_like(added_BKNMFF[:, :, :, 0])
    states = []
    for total, added in zip(total_BKNMF1.unbind(3), added_BKNMFF.unbind(3), strict=True):
        states.append(state_BKNFF)
        state_BKNFF = total * state_BKNFF + added
    output_BKNMSF = pairs_BKNMSS @ v + (r * torch.exp(before_BKNMSF)) @ torch.stack(states, dim=3)
    return output_BKNMSF.flatten(3, 4)[..., :length, :]


def rwkv6_macs(r_shape: torch.Size, *_: torch.Size) -> int:
    """Returns the multiply-adds of the recurrence: 3 F for each channel and step (add k v^T, decay, read)."""
    return 3 * r_shape[-1] * r_shape.numel()


_LAYOUT = {"r": "BKNLF", "k": "BKNLF", "v": "BKNLF", "log_decay": "BKNLF", "bonus": "KNF"}
rwkv6 = as_operator("rwkv6", rwkv6_chunked, rwkv6_macs, _LAYOUT)
