"""Sites of transformers' BeitModel."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from transformers.models.beit.configuration_beit import BeitConfig
from transformers.models.beit.modeling_beit import (
    BeitAttention,
    BeitBackbone,
    BeitEmbeddings,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitForSemanticSegmentation,
    BeitLayer,
    BeitMLP,
    BeitModel,
)

from mmpetl.backbones.shared.transformers_models import (
    LayerHost,
    PETLConv2d,
    PETLIdentity,
    PETLLayerNorm,
    StatesHost,
    Tap,
    TransformersMap,
)
from mmpetl.core import Context
from mmpetl.registry import BACKBONES


class PETLBeitLayer(LayerHost, BeitLayer):
    """A layer that runs sites."""

    def take(
        self,
        ctx: Context,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> None:
        # Upstream hands the bias that all layers share in the place of a mask.
        ctx.handed = attention_mask, interpolate_pos_encoding

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.layernorm_before, self.layernorm_after

    def attention_parts(self) -> dict[str, Any]:
        bias = {'bias': self.position_bias, 'bias_prefix': 1}
        return super().attention_parts() | bias

    def position_bias(self, q: Tensor, ctx: Context) -> Tensor | None:
        """(1, heads, N, N) over class token and grid, fitted to the grid."""
        bias, interpolate = ctx.handed
        if self.relative_position_bias is not None:
            own = self.relative_position_bias(
                tuple(ctx.grid), interpolate, dim_size=1 + math.prod(ctx.grid)
            )
            bias = own if bias is None else own + bias
        return bias if bias is None or len(bias) > 1 else bias[0]

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.dropout(x)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path((self.lambda_1 if branch == 1 else self.lambda_2) * x)


class PETLBeitEmbeddings(Tap, BeitEmbeddings):
    """Patches, class token and, in some models, positions."""


class PETLBeitModel(StatesHost, BeitModel):
    """A BeitModel that runs sites."""


@BACKBONES.register_module()
class TransformersBeit(TransformersMap):
    """``transformers.BeitModel``."""

    host = BeitModel
    host_block = BeitLayer
    swapped = PETLBeitModel
    swapped_block = PETLBeitLayer
    holders = dict.fromkeys(
        (
            BeitBackbone,
            BeitForImageClassification,
            BeitForMaskedImageModeling,
            BeitForSemanticSegmentation,
        ),
        'beit',
    )
    layers = 'layers'
    vector_norm = 'pooler.layernorm'
    parts = {'attention': (BeitAttention,), 'mlp': (BeitMLP,)}
    taps = {
        nn.Conv2d: PETLConv2d,
        BeitEmbeddings: PETLBeitEmbeddings,
        nn.LayerNorm: PETLLayerNorm,
        nn.Identity: PETLIdentity,
    }
    position_biases = ('relative_position_bias_table',)

    def read_by(self, holder: nn.Module) -> list[int]:
        if not isinstance(holder, BeitForSemanticSegmentation):
            return super().read_by(holder)
        count = holder.config.num_hidden_layers + 1
        return sorted({(i - 1) % count for i in holder.config.out_indices})

    def example(self) -> nn.Module:
        return BeitModel(BeitConfig(use_relative_position_bias=True))
