"""Sites of transformers' VJEPA2Model; its predictor stays as it is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.vjepa2.configuration_vjepa2 import VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import (
    VJEPA2MLP,
    VJEPA2Embeddings,
    VJEPA2ForVideoClassification,
    VJEPA2Layer,
    VJEPA2Model,
    VJEPA2RopeAttention,
)

from mmpetl.backbones.shared.transformers_models import (
    LayerHost,
    ModelHost,
    PETLConv3d,
    PETLLayerNorm,
    Tap,
    TransformersMap,
)
from mmpetl.core import Context
from mmpetl.registry import BACKBONES


class PETLVJEPA2Layer(LayerHost, VJEPA2Layer):
    """A layer that runs sites."""

    free_keys = False

    def returned(self, y: Tensor) -> tuple[Tensor, None]:
        return y, None

    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        attn = self.attention
        return attn.query, attn.key, attn.value, attn.proj

    def attention_parts(self) -> dict[str, Any]:
        return super().attention_parts() | {'prepare': self.rotate}

    def rotate(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary positions over time, height and width of the grid's tokens.

        Upstream counts rows and columns by the size that the model was made for.
        """
        places, attn = math.prod(ctx.grid), self.attention
        if not places:
            return q, k, v
        at = attn.get_position_ids(q[:, 0, -places:])

        def turn(x: Tensor) -> Tensor:
            front, grid = x[:, :, :-places], x[:, :, -places:]
            return torch.cat((front, attn.apply_rotary_embeddings(grid, at)), dim=2)

        return turn(q), turn(k), v

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x)


class PETLVJEPA2Embeddings(Tap, VJEPA2Embeddings):
    """Patches; their positions are rotary."""


class PETLVJEPA2Model(ModelHost, VJEPA2Model):
    """A VJEPA2Model that runs sites."""


@BACKBONES.register_module()
class TransformersVJEPA2(TransformersMap):
    """``transformers.VJEPA2Model``."""

    host = VJEPA2Model
    host_block = VJEPA2Layer
    swapped = PETLVJEPA2Model
    swapped_block = PETLVJEPA2Layer
    holders = {VJEPA2ForVideoClassification: 'vjepa2'}
    layers = 'encoder.layer'
    projection = 'encoder.embeddings.patch_embeddings.proj'
    embedding = 'encoder.embeddings'
    final = 'encoder.layernorm'
    parts = {'attention': (VJEPA2RopeAttention,), 'mlp': (VJEPA2MLP,)}
    taps = {
        nn.Conv3d: PETLConv3d,
        VJEPA2Embeddings: PETLVJEPA2Embeddings,
        nn.LayerNorm: PETLLayerNorm,
    }
    unread = ('predictor',)

    def example(self) -> nn.Module:
        return VJEPA2Model(VJEPA2Config())
