"""Sites of transformers' Dinov2Model and Dinov2Backbone, with and without registers."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.dinov2 import modeling_dinov2 as dinov2
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2_with_registers import (
    modeling_dinov2_with_registers as registers,
)
from transformers.models.dinov2_with_registers.configuration_dinov2_with_registers import (  # noqa: E501
    Dinov2WithRegistersConfig,
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
from mmpetl.registry import BACKBONES


class ScaledLayer(LayerHost):
    """A layer with layer scale and one stochastic depth for both branches."""

    def residual(self, branch: int, x: Tensor) -> Tensor:
        scale = self.layer_scale1 if branch == 1 else self.layer_scale2
        return self.drop_path(scale(x))


class PETLDinov2Layer(ScaledLayer, dinov2.Dinov2Layer):
    """A layer that runs sites."""


class PETLDinov2Embeddings(Tap, dinov2.Dinov2Embeddings):
    """Patches, class token and positions."""


class PETLDinov2Model(ModelHost, dinov2.Dinov2Model):
    """A Dinov2Model that runs sites."""


class PETLDinov2Encoder(Tap, dinov2.Dinov2Encoder):
    """The layers, and the states that a Dinov2Backbone hands out."""


class PETLDinov2Backbone(StatesHost, dinov2.Dinov2Backbone):
    """A Dinov2Backbone that runs sites."""


class PETLDinov2WithRegistersLayer(ScaledLayer, registers.Dinov2WithRegistersLayer):
    """A layer that runs sites."""


class PETLDinov2WithRegistersEmbeddings(Tap, registers.Dinov2WithRegistersEmbeddings):
    """Patches, class token, registers and positions."""


class PETLDinov2WithRegistersModel(ModelHost, registers.Dinov2WithRegistersModel):
    """A Dinov2WithRegistersModel that runs sites."""


class PETLDinov2WithRegistersEncoder(Tap, registers.Dinov2WithRegistersEncoder):
    """The layers, and the states that a Dinov2WithRegistersBackbone hands out."""


class PETLDinov2WithRegistersBackbone(
    StatesHost, registers.Dinov2WithRegistersBackbone
):
    """A Dinov2WithRegistersBackbone that runs sites."""


@BACKBONES.register_module()
class TransformersDinov2(TransformersMap):
    """``transformers.Dinov2Model``."""

    host = dinov2.Dinov2Model
    host_block = dinov2.Dinov2Layer
    swapped = PETLDinov2Model
    swapped_block = PETLDinov2Layer
    holders = {dinov2.Dinov2ForImageClassification: 'dinov2'}
    layers = 'encoder.layer'
    parts = {
        'attention': (dinov2.Dinov2Attention,),
        'mlp': (dinov2.Dinov2MLP, dinov2.Dinov2SwiGLUFFN),
    }
    taps = {
        nn.Conv2d: PETLConv2d,
        dinov2.Dinov2Embeddings: PETLDinov2Embeddings,
        nn.LayerNorm: PETLLayerNorm,
    }

    def example(self) -> nn.Module:
        return dinov2.Dinov2Model(Dinov2Config(image_size=518, patch_size=14))


@BACKBONES.register_module()
class TransformersDinov2Backbone(StatesMap, TransformersDinov2):
    """``transformers.Dinov2Backbone``."""

    host = dinov2.Dinov2Backbone
    swapped = PETLDinov2Backbone
    encoder = 'encoder'
    taps = TransformersDinov2.taps | {dinov2.Dinov2Encoder: PETLDinov2Encoder}

    def example(self) -> nn.Module:
        return dinov2.Dinov2Backbone(Dinov2Config(image_size=518, patch_size=14))


@BACKBONES.register_module()
class TransformersDinov2WithRegisters(TransformersMap):
    """``transformers.Dinov2WithRegistersModel``."""

    host = registers.Dinov2WithRegistersModel
    host_block = registers.Dinov2WithRegistersLayer
    swapped = PETLDinov2WithRegistersModel
    swapped_block = PETLDinov2WithRegistersLayer
    holders = {
        registers.Dinov2WithRegistersForImageClassification: 'dinov2_with_registers'
    }
    layers = 'encoder.layer'
    parts = {
        'attention': (registers.Dinov2WithRegistersAttention,),
        'mlp': (
            registers.Dinov2WithRegistersMLP,
            registers.Dinov2WithRegistersSwiGLUFFN,
        ),
    }
    taps = {
        nn.Conv2d: PETLConv2d,
        registers.Dinov2WithRegistersEmbeddings: PETLDinov2WithRegistersEmbeddings,
        nn.LayerNorm: PETLLayerNorm,
    }

    def example(self) -> nn.Module:
        config = Dinov2WithRegistersConfig(image_size=518, patch_size=14)
        return registers.Dinov2WithRegistersModel(config)


@BACKBONES.register_module()
class TransformersDinov2WithRegistersBackbone(
    StatesMap, TransformersDinov2WithRegisters
):
    """``transformers.Dinov2WithRegistersBackbone``."""

    host = registers.Dinov2WithRegistersBackbone
    swapped = PETLDinov2WithRegistersBackbone
    encoder = 'encoder'
    taps = TransformersDinov2WithRegisters.taps | {
        registers.Dinov2WithRegistersEncoder: PETLDinov2WithRegistersEncoder
    }

    def example(self) -> nn.Module:
        config = Dinov2WithRegistersConfig(image_size=518, patch_size=14)
        return registers.Dinov2WithRegistersBackbone(config)
