"""The mLSTM (Beck et al., "xLSTM", arXiv:2405.04517, Section 2.3): a matrix memory with exponential input gates.

Both forms keep memory and normaliser divided by ``exp(m)``, where m is the largest exponent so far, so that nothing
overflows; the result does not depend on m, which therefore has no gradient.

Shape letters: B batch, K scan directions, N heads, L sequence length, F width of a head, S steps per chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.operator import as_operator

CHUNK = 256  # computes a map of 16 x 16 in one parallel step; beyond it, memory grows in proportion to L


def mlstm_reference(
    q_BKNLF: Tensor, k_BKNLF: Tensor, v_BKNLF: Tensor, input_BKNL: Tensor, forget_BKNL: Tensor
) -> Tensor:
    """The definition: the recurrence step by step, in the inputs' dtype. Arguments as for ``mlstm_chunked``."""
    width = q_BKNLF.shape[-1]
    memory_BKNFF = q_BKNLF.new_zeros(*q_BKNLF.shape[:3], width, width)
    normaliser_BKNF = q_BKNLF.new_zeros(*q_BKNLF.shape[:3], width)
    m_BKN = q_BKNLF.new_zeros(q_BKNLF.shape[:3])
    output = []
    for t in range(q_BKNLF.shape[3]):
        q, k, v = q_BKNLF[..., t, :], k_BKNLF[..., t, :] / width**0.5, v_BKNLF[..., t, :]
        log_forget = F.logsigmoid(forget_BKNL[..., t])
        m_before, m_BKN = m_BKN, torch.maximum(log_forget + m_BKN, input_BKNL[..., t]).detach()
        forget_BKN1 = torch.exp(log_forget + m_before - m_BKN)[..., None]
        input_BKN1 = torch.exp(input_BKNL[..., t] - m_BKN)[..., None]
        memory_BKNFF = forget_BKN1[..., None] * memory_BKNFF + input_BKN1[..., None] * k[..., None] * v[..., None, :]
        normaliser_BKNF = forget_BKN1 * normaliser_BKNF + input_BKN1 * k
        norm_BKN = (normaliser_BKNF * q).sum(-1).abs()
        output.append((q[..., None] * memory_BKNFF).sum(-2) / torch.maximum(norm_BKN, torch.exp(-m_BKN))[..., None])
    return torch.stack(output, dim=3)


def mlstm_chunked(
    q_BKNLF: Tensor, k_BKNLF: Tensor, v_BKNLF: Tensor, input_BKNL: Tensor, forget_BKNL: Tensor, chunk: int = CHUNK
) -> Tensor:
    """Reads a matrix memory: ``h_t = C_t^T q_t / max(|n_t^T q_t|, 1)``.

    ``C_t = f_t C_{t-1} + i_t k_t v_t^T`` and ``n_t = f_t n_{t-1} + i_t k_t`` from ``C = n = 0``, where i is the
    exponential of ``input``, f the sigmoid of ``forget``, and k is divided by ``sqrt(F)``.

    It is parallel within a chunk, like attention with decaying weights; the memory passes from chunk to chunk.

    Args:
        q_BKNLF: Queries.
        k_BKNLF: Keys.
        v_BKNLF: Values.
        input_BKNL: Input gates before their exponential.
        forget_BKNL: Forget gates before their sigmoid.

    Returns:
        h_BKNLF, of q's dtype, computed in fp32 (fp64 for fp64 input) whatever autocast says.
    """
    k_BKNLF = k_BKNLF / q_BKNLF.shape[-1] ** 0.5
    log_forget_BKNL = F.logsigmoid(forget_BKNL)
    state: tuple[Tensor, Tensor, Tensor] | None = None
    output: list[Tensor] = []
    for q, k, v in zip(*(x.split(chunk, dim=3) for x in (q_BKNLF, k_BKNLF, v_BKNLF)), strict=True):
        start, steps = sum(y.shape[3] for y in output), q.shape[3]
        input_BKNS = input_BKNL[..., start : start + steps]
        forgotten_BKNS = log_forget_BKNL[..., start : start + steps].cumsum(-1)
        later_SS = torch.ones(steps, steps, dtype=torch.bool, device=q.device).triu(1)
        exponents_BKNSS = forgotten_BKNS[..., :, None] - forgotten_BKNS[..., None, :] + input_BKNS[..., None, :]
        exponents_BKNSS = exponents_BKNSS.masked_fill(later_SS, -torch.inf)
        m_BKNS = exponents_BKNSS.amax(-1)
        if state is not None:
            m_BKNS = torch.maximum(m_BKNS, forgotten_BKNS + state[2][..., None])
        m_BKNS = m_BKNS.detach()

        gates_BKNSS = torch.exp(exponents_BKNSS - m_BKNS[..., None])
        weights_BKNSS = (q @ k.mT) * gates_BKNSS
        read_BKNSF, norm_BKNS = weights_BKNSS @ v, weights_BKNSS.sum(-1)
        written_BKNSF = gates_BKNSS[..., -1, :, None] * k  # what is left of each step at the end of the chunk
        memory_BKNFF, normaliser_BKNF = written_BKNSF.mT @ v, written_BKNSF.sum(-2)
        if state is not None:
            kept_BKNS1 = torch.exp(forgotten_BKNS + state[2][..., None] - m_BKNS)[..., None]
            read_BKNSF = read_BKNSF + kept_BKNS1 * (q @ state[0])
            norm_BKNS = norm_BKNS + (kept_BKNS1 * (q @ state[1][..., None]))[..., 0]
            memory_BKNFF = memory_BKNFF + kept_BKNS1[..., -1:, :] * state[0]
            normaliser_BKNF = normaliser_BKNF + kept_BKNS1[..., -1, :] * state[1]
        output.append(read_BKNSF / torch.maximum(norm_BKNS.abs(), torch.exp(-m_BKNS))[..., None])
        state = memory_BKNFF, normaliser_BKNF, m_BKNS[..., -1]
    return torch.cat(output, dim=3)


def mlstm_macs(q_shape: torch.Size, *_: torch.Size) -> int:
    """Returns the multiply-adds of the parallel form: 2 S per channel and step, plus 2 F from the second chunk on."""
    *sequences, length, width = q_shape
    whole, rest = divmod(length, CHUNK)
    within = 2 * (whole * CHUNK**2 + rest**2)
    between = 2 * width * max(length - CHUNK, 0)
    return torch.Size(sequences).numel() * width * (within + between)


_LAYOUT = {"q": "BKNLF", "k": "BKNLF", "v": "BKNLF", "input": "BKNL", "forget": "BKNL"}
mlstm = as_operator("mlstm", mlstm_chunked, mlstm_macs, _LAYOUT)
