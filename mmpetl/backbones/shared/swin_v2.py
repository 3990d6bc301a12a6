"""What every Swin Transformer V2 computes: cosine attention, a continuous bias."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Context, Rows, WindowBlockHost

MOST_SCALE = math.log(1 / 0.01)
"""What the logarithm of the scale of scores is clamped at, in the paper and here."""


class SwinV2Block(WindowBlockHost):
    """A post-norm block whose scores are scaled cosines.

    Mixed in front of a block of version 1, whose names it shares.
    """

    post_norm = True

    def window_attention(self) -> nn.Module:
        """What holds ``qkv``, ``logit_scale`` and ``cpb_mlp``."""
        return self.attn

    def projections(self) -> nn.Module | Rows:
        """The projection, whose biases lie beside it, those of keys always zero.

        Keys do need a bias if a shift is folded into them: a norm follows.
        """
        attn = self.window_attention()
        if attn.q_bias is None:
            return attn.qkv
        parts = (attn.q_bias, len(attn.v_bias), attn.v_bias)
        return Rows(attn.qkv.weight, parts, free=False)

    def attention_parts(self) -> dict[str, Any]:
        attn = self.window_attention()
        return {
            'num_heads': attn.num_heads,
            'qkv': self.projections(),
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'scale': 1.0,
            'prepare': self.cosines,
        }

    def cosines(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Unit queries times the learned scale of each head, and unit keys."""
        scale = self.window_attention().logit_scale.clamp(max=MOST_SCALE).exp()
        return (_unit(q) * scale).to(v.dtype), _unit(k).to(v.dtype), v

    def position_bias(self, num_tokens: int) -> Tensor:
        attn, n = self.window_attention(), num_tokens
        table = attn.cpb_mlp(attn.relative_coords_table).flatten(0, -2)
        rows = (16 * table.sigmoid())[attn.relative_position_index.flatten()]
        return rows.view(n, n, -1).permute(2, 0, 1)


def _unit(x: Tensor) -> Tensor:
    """``x`` at length 1 along its last axis; zeros, as keys of padding are, stay zeros.

    Upstream's smallest length, 1e-12, is 0 in half precision, and 0 / 0 no number.
    """
    return F.normalize(x, dim=-1, eps=max(1e-12, torch.finfo(x.dtype).tiny))
