"""TTT-Linear (Sun et al., "Learning to (Learn at Test Time)", arXiv:2407.04620): a linear map trained on the fly.

The map is trained, in mini-batches of tokens, to predict the difference of the values from the keys; the answer to each
query is given by the map trained up to its token.

Shape letters: B batch, K scan directions, N heads, L sequence length, F width of a head, S tokens per mini-batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.operator import as_operator

MINI_BATCH = 16
EPS = 1e-6


def ttt_linear_reference(
    q_BKNLF: Tensor,
    k_BKNLF: Tensor,
    v_BKNLF: Tensor,
    rate_BKNL: Tensor,
    share_S: Tensor,
    weight_NFF: Tensor,
    bias_NF: Tensor,
    gain_NF: Tensor,
    shift_NF: Tensor,
) -> Tensor:
    """The definition: gradient descent token by token, in the inputs' dtype.

    Autograd computes the gradient of the loss as the paper states it. Arguments and result as for
    ``ttt_linear_chunked``.
    """

    def norm(z_BKNF: Tensor) -> Tensor:
        return F.layer_norm(z_BKNF, z_BKNF.shape[-1:], eps=EPS) * gain_NF + shift_NF

    def loss(z_BKNF: Tensor, k_BKNF: Tensor, v_BKNF: Tensor) -> Tensor:
        return (norm(z_BKNF) - (v_BKNF - k_BKNF)).square().sum() / 2

    weight_BKNFF = weight_NFF.expand(*q_BKNLF.shape[:2], -1, -1, -1)
    bias_BKNF = bias_NF.expand(*q_BKNLF.shape[:2], -1, -1)
    output = []
    for t in range(q_BKNLF.shape[3]):
        q, k, v = q_BKNLF[..., t, :], k_BKNLF[..., t, :], v_BKNLF[..., t, :]
        if t % len(share_S) == 0:  # a mini-batch begins: all its gradients are taken at this point
            start_BKNFF, start_BKNF = weight_BKNFF, bias_BKNF
            sum_BKNFF, sum_BKNF = torch.zeros_like(weight_BKNFF), torch.zeros_like(bias_BKNF)
        z_BKNF = (k[..., None] * start_BKNFF).sum(-2) + start_BKNF
        gradient_BKNF = rate_BKNL[..., t, None] * torch.func.grad(loss)(z_BKNF, k, v)
        sum_BKNFF = sum_BKNFF + k[..., None] * gradient_BKNF[..., None, :]
        sum_BKNF = sum_BKNF + gradient_BKNF
        weight_BKNFF = start_BKNFF - share_S[t % len(share_S)] * sum_BKNFF
        bias_BKNF = start_BKNF - share_S[t % len(share_S)] * sum_BKNF
        output.append(q + norm((q[..., None] * weight_BKNFF).sum(-2) + bias_BKNF))
    return torch.stack(output, dim=3)


def ttt_linear_chunked(
    q_BKNLF: Tensor,
    k_BKNLF: Tensor,
    v_BKNLF: Tensor,
    rate_BKNL: Tensor,
    share_S: Tensor,
    weight_NFF: Tensor,
    bias_NF: Tensor,
    gain_NF: Tensor,
    shift_NF: Tensor,
) -> Tensor:
    """``q_t + LN(q_t W_t + b_t)``, where ``W_t`` and ``b_t`` have been trained on the tokens up to t.

    Let G_s be the gradient of ``|LN(k_s W + b) - (v_s - k_s)|^2 / 2`` with respect to ``k_s W + b``, taken at the start
    of the mini-batch. Then its t-th token has ``W_t = W - share_t sum_{s <= t} rate_s k_s^T G_s``, and likewise b_t;
    those of the last token start the next mini-batch. The last mini-batch of the sequence may be short.

    It computes whole mini-batches (the paper's dual form) by matrix products, without a map for each token.

    Args:
        q_BKNLF: Queries.
        k_BKNLF: Keys, the inputs to train on.
        v_BKNLF: Values; the map learns their difference from the keys.
        rate_BKNL: Learning rate of each token.
        share_S: Weight of the sum at each place of a mini-batch; its length is the mini-batch's.
        weight_NFF: W at the start of the sequence.
        bias_NF: b at the start of the sequence.
        gain_NF: Weight of the LayerNorm LN.
        shift_NF: Bias of the LayerNorm LN.

    Returns:
        The answers, BKNLF, of q's dtype, computed in fp32 (fp64 for fp64 input) whatever autocast says.
    """
    weight, bias, gain, shift = weight_NFF, bias_NF[:, None], gain_NF[:, None], shift_NF[:, None]
    steps = len(share_S)
    rates = rate_BKNL.unsqueeze(-1).split(steps, dim=3)
    output = []
    for q, k, v, rate in zip(*(x.split(steps, dim=3) for x in (q_BKNLF, k_BKNLF, v_BKNLF)), rates, strict=True):
        share_S1 = share_S[: q.shape[3], None]
        gradient_BKNSF = rate * _loss_gradient(k @ weight + bias, v - k, gain, shift)
        seen_BKNSS = (q @ k.mT + 1).tril()  # 1: the bias is a weight whose input is always 1
        z_BKNSF = q @ weight + bias - share_S1 * (seen_BKNSS @ gradient_BKNSF)
        output.append(q + F.layer_norm(z_BKNSF, z_BKNSF.shape[-1:], eps=EPS) * gain + shift)
        weight = weight - share_S1[-1] * (k.mT @ gradient_BKNSF)
        bias = bias - share_S1[-1] * gradient_BKNSF.sum(-2, keepdim=True)
    return torch.cat(output, dim=3)


def _loss_gradient(z: Tensor, target: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Returns the gradient of ``|LN(z) - target|^2 / 2`` with respect to z, for each token."""
    centred = z - z.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
    normed = centred * scale
    slope = (normed * gain + shift - target) * gain
    return (slope - slope.mean(-1, keepdim=True) - normed * (slope * normed).mean(-1, keepdim=True)) * scale


def ttt_linear_macs(q_shape: torch.Size, *_: torch.Size) -> int:
    """Returns the multiply-adds of the dual form: 3 F + 3 S per channel and token, weights apart, as published."""
    return 3 * (q_shape[-1] + MINI_BATCH) * q_shape.numel()


_TOKENS = {"q": "BKNLF", "k": "BKNLF", "v": "BKNLF", "rate": "BKNL"}
_WEIGHTS = {"share": "S", "weight": "NFF", "bias": "NF", "gain": "NF", "shift": "NF"}
ttt_linear = as_operator("ttt_linear", ttt_linear_chunked, ttt_linear_macs, _TOKENS | _WEIGHTS)
