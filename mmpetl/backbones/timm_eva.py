"""Sites of timm's Eva: EVA, EVA-02, DINOv3, Perception Encoder, ViTs with rotations."""

from __future__ import annotations

import math

import torch
from timm.layers import AttentionRope, GluMlp, Mlp, SwiGLU, apply_rot_embed_cat
from timm.models import eva
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_plain import (
    GammaBlock,
    TimmBlock,
    TimmPlain,
    TimmPlainMap,
    biased_qkv,
)
from mmpetl.core import Context, Rows, Stack
from mmpetl.registry import BACKBONES


class EvaParts(TimmBlock):
    """What blocks of both orders share: projections, rotary positions, key heads."""

    def projections(self) -> nn.Module | Rows | Stack:
        attn = self.attn
        if attn.qkv is None:
            return Stack(attn.q_proj, attn.k_proj, attn.v_proj)
        if isinstance(attn, AttentionRope):
            return attn.qkv
        return biased_qkv(attn, free=False)

    def norm_heads(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Norms per head, then rotations of the grid, then keys for each query head."""
        attn = self.attn
        q, k = attn.q_norm(q), attn.k_norm(k)
        rope = None if ctx.handed is None else ctx.handed[1]
        if rope is not None and all(ctx.grid):
            q, k = (self.rotated(t, rope, ctx).type_as(v) for t in (q, k))
        groups = getattr(attn, 'num_kv_groups', 1)
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        return q, k, v

    def rotated(self, t: Tensor, rope: Tensor, ctx: Context) -> Tensor:
        """(B, heads, num_prefix + N, d) with its last N tokens turned."""
        own = t.shape[2] - math.prod(ctx.grid)
        grid = apply_rot_embed_cat(t[:, :, own:], rope, half=self.attn.rotate_half)
        return torch.cat((t[:, :, :own], grid), dim=2)


class PETLEvaBlock(EvaParts, GammaBlock, EvaBlock):
    """A block that runs sites."""


class PETLEvaBlockPostNorm(EvaParts, EvaBlockPostNorm):
    """Norms behind the sub-layers."""

    post_norm = True

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path1(x) if branch == 1 else self.drop_path2(x)


class PETLEva(TimmPlain, Eva):
    """A timm Eva that runs sites.

    Its blocks are handed rotary positions: all of them, and those of the next block.
    """

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        x, rope = self._pos_embed(x)
        ctx.handed = (rope, None)
        return self.norm_pre(x)

    def run_block(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        rope, _ = ctx.handed
        own = rope is not None and self.rope_mixed
        ctx.handed = (rope, rope[index] if own else rope)
        return super().run_block(index, x, ctx)


@BACKBONES.register_module()
class TimmEva(TimmPlainMap):
    """``timm.models.eva.Eva``.

    Coordinates of rotary positions that upstream jitters in training stay as they are
    while ``rope`` is frozen, as frozen modules are in eval mode.
    """

    host = Eva
    swapped = PETLEva
    blocks_served = {EvaBlock: PETLEvaBlock, EvaBlockPostNorm: PETLEvaBlockPostNorm}
    parts = {'attn': (EvaAttention, AttentionRope), 'mlp': (Mlp, GluMlp, SwiGLU)}
    scales = ('gamma_1', 'gamma_2')

    def example(self) -> nn.Module:
        return eva.vit_base_patch16_dinov3(num_classes=0)
