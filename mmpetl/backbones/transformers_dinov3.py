"""Sites of transformers' DINOv3ViTModel and DINOv3ViTBackbone."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTAttention,
    DINOv3ViTBackbone,
    DINOv3ViTEmbeddings,
    DINOv3ViTEncoder,
    DINOv3ViTGatedMLP,
    DINOv3ViTLayer,
    DINOv3ViTMLP,
    DINOv3ViTModel,
    apply_rotary_pos_emb,
)

from mmpetl.backbones.shared.transformers_models import (
    LayerHost,
    ModelHost,
    PETLConv2d,
    PETLLayerNorm,
    StatesHost,
    StatesMap,
    Tap,
    TransformersMap,
)
from mmpetl.core import Context
from mmpetl.registry import BACKBONES


class PETLDINOv3ViTLayer(LayerHost, DINOv3ViTLayer):
    """A layer that runs sites."""

    free_keys = False

    def take(
        self,
        ctx: Context,
        attention_mask: None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        ctx.handed = position_embeddings

    @property
    def heads(self) -> int:
        return self.attention.num_heads

    def attention_parts(self) -> dict[str, Any]:
        return super().attention_parts() | {'prepare': self.rotate}

    def rotate(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary positions of the grid, which lies behind every prefix token."""
        if math.prod(ctx.grid):
            q, k = apply_rotary_pos_emb(q, k, *ctx.handed)
        return q, k, v

    def residual(self, branch: int, x: Tensor) -> Tensor:
        scale = self.layer_scale1 if branch == 1 else self.layer_scale2
        return self.drop_path(scale(x))


class PETLDINOv3ViTEmbeddings(Tap, DINOv3ViTEmbeddings):
    """Patches, class token and registers."""


class PETLDINOv3ViTModel(ModelHost, DINOv3ViTModel):
    """A DINOv3ViTModel that runs sites."""


class PETLDINOv3ViTEncoder(Tap, DINOv3ViTEncoder):
    """The layers, and the states that a DINOv3ViTBackbone hands out."""


class PETLDINOv3ViTBackbone(StatesHost, DINOv3ViTBackbone):
    """A DINOv3ViTBackbone that runs sites."""


@BACKBONES.register_module()
class TransformersDINOv3(TransformersMap):
    """``transformers.DINOv3ViTModel``."""

    host = DINOv3ViTModel
    host_block = DINOv3ViTLayer
    swapped = PETLDINOv3ViTModel
    swapped_block = PETLDINOv3ViTLayer
    layers = 'model.layer'
    projection = 'embeddings.patch_embeddings'
    final = 'norm'
    parts = {
        'attention': (DINOv3ViTAttention,),
        'mlp': (DINOv3ViTMLP, DINOv3ViTGatedMLP),
    }
    taps = {
        nn.Conv2d: PETLConv2d,
        DINOv3ViTEmbeddings: PETLDINOv3ViTEmbeddings,
        nn.LayerNorm: PETLLayerNorm,
    }

    def example(self) -> nn.Module:
        return DINOv3ViTModel(config_of_base())


@BACKBONES.register_module()
class TransformersDINOv3Backbone(StatesMap, TransformersDINOv3):
    """``transformers.DINOv3ViTBackbone``."""

    host = DINOv3ViTBackbone
    swapped = PETLDINOv3ViTBackbone
    encoder = 'model'
    norms_last = True
    taps = TransformersDINOv3.taps | {DINOv3ViTEncoder: PETLDINOv3ViTEncoder}

    def example(self) -> nn.Module:
        return DINOv3ViTBackbone(config_of_base())


def config_of_base() -> DINOv3ViTConfig:
    """The size that papers use."""
    size = {'hidden_size': 768, 'intermediate_size': 3072}
    heads = {'num_attention_heads': 12, 'num_register_tokens': 4}
    return DINOv3ViTConfig(num_hidden_layers=12, **size, **heads)
