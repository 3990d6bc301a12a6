"""Sites of transformers' ViTModel."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.vit.configuration_vit import ViTConfig
from transformers.models.vit.modeling_vit import (
    ViTAttention,
    ViTEmbeddings,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTLayer,
    ViTMLP,
    ViTModel,
)

from mmpetl.backbones.shared.transformers_models import (
    LayerHost,
    ModelHost,
    PETLConv2d,
    PETLLayerNorm,
    Tap,
    TransformersMap,
)
from mmpetl.registry import BACKBONES


class PETLViTLayer(LayerHost, ViTLayer):
    """A layer that runs sites."""

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.layernorm_before, self.layernorm_after

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.dropout(x)


class PETLViTEmbeddings(Tap, ViTEmbeddings):
    """Patches, class token and positions."""


class PETLViTModel(ModelHost, ViTModel):
    """A ViTModel that runs sites."""


@BACKBONES.register_module()
class TransformersViT(TransformersMap):
    """``transformers.ViTModel``."""

    host = ViTModel
    host_block = ViTLayer
    swapped = PETLViTModel
    swapped_block = PETLViTLayer
    holders = {ViTForImageClassification: 'vit', ViTForMaskedImageModeling: 'vit'}
    layers = 'layers'
    parts = {'attention': (ViTAttention,), 'mlp': (ViTMLP,)}
    taps = {
        nn.Conv2d: PETLConv2d,
        ViTEmbeddings: PETLViTEmbeddings,
        nn.LayerNorm: PETLLayerNorm,
    }
    apart = ('pooler',)

    def example(self) -> nn.Module:
        return ViTModel(ViTConfig(), add_pooling_layer=False)
