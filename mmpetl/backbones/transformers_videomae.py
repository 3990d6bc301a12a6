"""Sites of transformers' VideoMAEModel."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.videomae.configuration_videomae import VideoMAEConfig
from transformers.models.videomae.modeling_videomae import (
    VideoMAEAttention,
    VideoMAEEmbeddings,
    VideoMAEEncoder,
    VideoMAEForVideoClassification,
    VideoMAEIntermediate,
    VideoMAELayer,
    VideoMAEModel,
    VideoMAEOutput,
    VideoMAESelfAttention,
    VideoMAESelfOutput,
)

from mmpetl.backbones.shared.transformers_models import (
    LayerHost,
    ModelHost,
    PETLConv3d,
    PETLLayerNorm,
    Tap,
    TransformersMap,
)
from mmpetl.core import FFN
from mmpetl.registry import BACKBONES


class PETLVideoMAELayer(LayerHost, VideoMAELayer):
    """A layer that runs sites."""

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.layernorm_before, self.layernorm_after

    def attention_module(self) -> nn.Module:
        return self.attention.attention

    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        attn = self.attention_module()
        return attn.query, attn.key, attn.value, self.attention.output.dense

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attention.output.dropout(x)

    def ffn_parts(self) -> FFN:
        act = self.intermediate.intermediate_act_fn
        out = self.output
        return FFN(
            self.intermediate.dense,
            lambda x, _: act(x),
            out.dense,
            out.dropout,
            by_token=True,
        )


class PETLVideoMAEEmbeddings(Tap, VideoMAEEmbeddings):
    """Patches and positions."""


class PETLVideoMAEEncoder(Tap, VideoMAEEncoder):
    """The layers, where no norm follows: heads of fine-tuned models have it."""


class PETLVideoMAEModel(ModelHost, VideoMAEModel):
    """A VideoMAEModel that runs sites."""

    refused = {
        'bool_masked_pos': 'which drops patches and leaves no grid; leave it out'
    }


@BACKBONES.register_module()
class TransformersVideoMAE(TransformersMap):
    """``transformers.VideoMAEModel``."""

    host = VideoMAEModel
    host_block = VideoMAELayer
    swapped = PETLVideoMAEModel
    swapped_block = PETLVideoMAELayer
    holders = {VideoMAEForVideoClassification: 'videomae'}
    layers = 'encoder.layer'
    encoder = 'encoder'
    parts = {
        'attention': (VideoMAEAttention,),
        'attention.attention': (VideoMAESelfAttention,),
        'attention.output': (VideoMAESelfOutput,),
        'intermediate': (VideoMAEIntermediate,),
        'output': (VideoMAEOutput,),
    }
    taps = {
        nn.Conv3d: PETLConv3d,
        VideoMAEEmbeddings: PETLVideoMAEEmbeddings,
        nn.LayerNorm: PETLLayerNorm,
        VideoMAEEncoder: PETLVideoMAEEncoder,
    }

    def example(self) -> nn.Module:
        return VideoMAEModel(VideoMAEConfig())
