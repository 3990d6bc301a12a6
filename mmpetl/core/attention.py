"""Multi-head attention as functions of tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d), a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(q k^T / sqrt(d) + bias + mask) v``.

    Args:
        q: (B, heads, Nq, d); in windowed attention B counts images times windows,
            image-major.
        k: (B, heads, Nk, d).
        v: (B, heads, Nk, d).
        bias: (heads, N, N) over the last N queries and keys. Tokens in front of
            them get no bias.
        mask: (windows, N, N), added per window, likewise over the last N.
        dropout: Probability that an attention weight is dropped.

    Returns:
        (B, heads, Nq, d).
    """
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    extra_q, extra_k = q.shape[-2] - bias.shape[-2], k.shape[-2] - bias.shape[-1]
    if mask is None:
        full = bias.unsqueeze(0)
    else:
        full = bias.unsqueeze(0) + mask.unsqueeze(1)
    if extra_q or extra_k:
        full = F.pad(full, (extra_k, 0, extra_q, 0))
    full = full.to(q.dtype)
    if full.requires_grad and not q.is_cuda:
        # No fused kernel of the CPU has a gradient for its bias, and the fallback
        # scales queries and keys apart: the plain formula is faster.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = (scores.unflatten(0, (-1, len(full))) + full).flatten(0, 1)
        return F.dropout(scores.softmax(-1), dropout) @ v
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, full, dropout_p=dropout)
    # Windows move next to the heads, so that one (windows * heads, Nq, Nk) bias is
    # broadcast over the images instead of being copied for each of them.
    windows, heads = full.shape[:2]

    def pack(t: Tensor) -> Tensor:
        return t.reshape(-1, windows * heads, *t.shape[2:])

    out = F.scaled_dot_product_attention(
        pack(q), pack(k), pack(v), full.flatten(0, 1).unsqueeze(0), dropout_p=dropout
    )
    return out.reshape(-1, heads, *out.shape[2:])
