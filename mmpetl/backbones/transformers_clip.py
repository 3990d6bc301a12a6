"""Sites of transformers' image towers of CLIP and SigLIP."""

from __future__ import annotations

from torch import nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipEncoderLayer,
    SiglipForImageClassification,
    SiglipMLP,
    SiglipModel,
    SiglipVisionEmbeddings,
    SiglipVisionModel,
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


class TowerLayer(LayerHost):
    """A layer of either tower."""

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.layer_norm1, self.layer_norm2

    def attention_module(self) -> nn.Module:
        return self.self_attn

    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        attn = self.self_attn
        return attn.q_proj, attn.k_proj, attn.v_proj, attn.out_proj

    @property
    def heads(self) -> int:
        return self.self_attn.num_heads


class PETLCLIPEncoderLayer(TowerLayer, CLIPEncoderLayer):
    """A layer that runs sites."""


class PETLCLIPEncoder(Tap, CLIPEncoder):
    """The layers; what leaves them is normed behind the pooling only."""


class PETLCLIPVisionModel(ModelHost, CLIPVisionModel):
    """A CLIPVisionModel that runs sites."""


class PETLSiglipEncoderLayer(TowerLayer, SiglipEncoderLayer):
    """A layer that runs sites."""


class PETLSiglipVisionEmbeddings(Tap, SiglipVisionEmbeddings):
    """Patches and positions."""


class PETLSiglipVisionModel(ModelHost, SiglipVisionModel):
    """A SiglipVisionModel that runs sites."""


class TowerMap(TransformersMap):
    """Names that both towers share."""

    layers = 'encoder.layers'
    projection = 'embeddings.patch_embedding'
    positions = ('position_embedding',)
    tokens = ('class_embedding', 'probe')


@BACKBONES.register_module()
class TransformersCLIP(TowerMap):
    """``transformers.CLIPVisionModel``."""

    host = CLIPVisionModel
    host_block = CLIPEncoderLayer
    swapped = PETLCLIPVisionModel
    swapped_block = PETLCLIPEncoderLayer
    holders = {
        CLIPForImageClassification: 'vision_model',
        CLIPModel: 'vision_model',
        CLIPVisionModelWithProjection: 'vision_model',
    }
    embedding = 'pre_layrnorm'
    final = ''
    encoder = 'encoder'
    vector_norm = 'post_layernorm'
    parts = {'self_attn': (CLIPAttention,), 'mlp': (CLIPMLP,)}
    taps = {
        nn.Conv2d: PETLConv2d,
        CLIPEncoder: PETLCLIPEncoder,
        nn.LayerNorm: PETLLayerNorm,
    }

    def example(self) -> nn.Module:
        return CLIPVisionModel(CLIPVisionConfig(patch_size=16))


@BACKBONES.register_module()
class TransformersSiglip(TowerMap):
    """``transformers.SiglipVisionModel``."""

    host = SiglipVisionModel
    host_block = SiglipEncoderLayer
    swapped = PETLSiglipVisionModel
    swapped_block = PETLSiglipEncoderLayer
    holders = {
        SiglipForImageClassification: 'vision_model',
        SiglipModel: 'vision_model',
    }
    final = 'post_layernorm'
    parts = {'self_attn': (SiglipAttention,), 'mlp': (SiglipMLP,)}
    taps = {
        nn.Conv2d: PETLConv2d,
        SiglipVisionEmbeddings: PETLSiglipVisionEmbeddings,
        nn.LayerNorm: PETLLayerNorm,
    }
    # The attention pooling: pre-trained, and read by `pooler_output` alone.
    apart = ('head',)

    def example(self) -> nn.Module:
        return SiglipVisionModel(SiglipVisionConfig())
