"""Multi-head attention as functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d), a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def spread_bias(bias: Tensor, own: int, extra: int) -> Tensor:
    """Rows and columns of zeros for extra tokens that stand behind own ones.

    Args:
        bias: (..., own + N, own + N).
        own: Tokens of the backbone itself in front of the extra ones.
        extra: How many tokens deltas have added.

    Returns:
        (..., own + extra + N, own + extra + N).
    """
    if not extra:
        return bias
    for axis in (-2, -1):
        front, back = bias.split([own, bias.shape[axis] - own], dim=axis)
        shape = list(bias.shape)
        shape[axis] = extra
        bias = torch.cat((front, bias.new_zeros(shape), back), dim=axis)
    return bias


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """``softmax(scale * q k^T + bias + mask) v``.

    Args:
        q: (B, heads, Nq, d); in windowed attention B counts images times windows,
            image-major.
        k: (B, heads, Nk, d).
        v: (B, heads, Nk, d).
        bias: (heads, N, M) or (B, heads, N, M) over the last N queries and M keys.
            Tokens in front of them get no bias.
        mask: (windows, N, M), added per window, likewise over the last ones.
        dropout: Probability that an attention weight is dropped.
        scale: Factor of the scores, ``1 / sqrt(d)`` by default.

    Returns:
        (B, heads, Nq, d).
    """
    full = score_terms(q, k, bias, mask)
    if full is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    if full.requires_grad and not q.is_cuda:
        # No fused kernel of the CPU has a gradient for its bias, and the fallback
        # scales queries and keys apart: the plain formula is faster.
        scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT
        # Asked of the bias, for the number of images is open in an exported pass.
        if bias is not None and bias.ndim == 4:
            scores = scores + full
        else:
            scores = (scores.unflatten(0, (-1, len(full))) + full).flatten(0, 1)
        return F.dropout(scores.softmax(-1), dropout) @ v
    if mask is None or (bias is not None and bias.ndim == 4):
        return F.scaled_dot_product_attention(
            q, k, v, full, dropout_p=dropout, scale=scale
        )
    # Windows move next to the heads, so that one (windows * heads, Nq, Nk) bias is
    # broadcast over the images instead of being copied for each of them.
    windows, heads = len(full), q.shape[1]
    full = full.expand(-1, heads, -1, -1)

    def pack(t: Tensor) -> Tensor:
        return t.reshape(-1, windows * heads, *t.shape[2:])

    out = F.scaled_dot_product_attention(
        pack(q),
        pack(k),
        pack(v),
        full.flatten(0, 1).unsqueeze(0),
        dropout_p=dropout,
        scale=scale,
    )
    return out.reshape(-1, heads, *out.shape[2:])


def score_terms(
    q: Tensor, k: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor | None:
    """What is added to the scores, for every query and key; None where nothing is.

    Args:
        q: (B, heads, Nq, d).
        k: (B, heads, Nk, d).
        bias: See :func:`softmax_attention`.
        mask: Likewise.

    Returns:
        (1 or windows or B, 1 or heads, Nq, Nk) in the dtype of ``q``.
    """
    if bias is None and mask is None:
        return None
    if bias is None:
        full = mask.unsqueeze(1)
    else:
        full = bias if bias.ndim == 4 else bias.unsqueeze(0)
        if mask is not None and bias.ndim == 3:
            full = full + mask.unsqueeze(1)
        elif mask is not None:
            full = full.unflatten(0, (-1, len(mask))) + mask.unsqueeze(1)
            full = full.flatten(0, 1)
    extra_q, extra_k = q.shape[-2] - full.shape[-2], k.shape[-2] - full.shape[-1]
    if extra_q or extra_k:
        full = F.pad(full, (extra_k, 0, extra_q, 0))
    return full.to(q.dtype)
