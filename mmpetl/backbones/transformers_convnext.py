"""Sites of transformers' ConvNextModel and ConvNextBackbone, versions 1 and 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.models.convnext import modeling_convnext as v1
from transformers.models.convnext.configuration_convnext import ConvNextConfig
from transformers.models.convnextv2 import modeling_convnextv2 as v2
from transformers.models.convnextv2.configuration_convnextv2 import ConvNextV2Config

from mmpetl.backbones.shared.transformers_models import (
    LayerHost,
    ModelHost,
    PETLLayerNorm,
    Tap,
    TransformersMap,
    running,
    selected_states,
)
from mmpetl.core import (
    FFN,
    Context,
    ConvBackboneHost,
    ConvBlockHost,
    ConvSiteMap,
    Site,
    from_maps,
    norm_tokens,
    to_maps,
)
from mmpetl.registry import BACKBONES


class ConvLayer(ConvBlockHost, LayerHost):
    """A layer that runs sites; upstream has no checkpointing of it."""

    gradient_checkpointing = False

    def mixer(self) -> nn.Module:
        return self.dwconv

    def norms(self) -> tuple[None, nn.Module]:
        return None, self.layernorm

    def ffn_parts(self) -> FFN:
        return FFN.of(self.pwconv1, (self.act,), self.pwconv2)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x)


class PETLConvNextLayer(ConvLayer, v1.ConvNextLayer):
    """A layer with layer scale."""

    def residual(self, branch: int, x: Tensor) -> Tensor:
        scale = self.layer_scale_parameter
        return self.drop_path(x if scale is None else scale * x)


class PETLConvNextV2Layer(ConvLayer, v2.ConvNextV2Layer):
    """A layer with a response norm over the grid."""

    def ffn_parts(self) -> FFN:
        return FFN(self.pwconv1, self.between, self.pwconv2)

    def between(self, x: Tensor, ctx: Context) -> Tensor:
        """Activation and response norm."""
        return self.grn(self.act(x).unflatten(1, ctx.grid)).flatten(1, 2)


class PETLConvNextEmbeddings(Tap, v1.ConvNextEmbeddings):
    """Patches and their norm."""


class PETLConvNextV2Embeddings(Tap, v2.ConvNextV2Embeddings):
    """Patches and their norm."""


class PETLConvNextStage(Tap, v1.ConvNextStage):
    """Layers, with what opens them."""


class PETLConvNextV2Stage(Tap, v2.ConvNextV2Stage):
    """Layers, with what opens them."""


class PETLConvNextLayerNorm(Tap, v1.ConvNextLayerNorm):
    """The norm of an output."""


class PETLConvNextV2LayerNorm(Tap, v2.ConvNextV2LayerNorm):
    """The norm of an output."""


class ConvModel(ConvBackboneHost, ModelHost):
    """A model whose embedding, stages and norms are taps.

    Upstream hands maps from stage to stage; each stage reads one as tokens, which is a
    view of it.
    """

    def tapped(
        self,
        tap: nn.Module,
        run: Callable[..., Any],
        ctx: Context,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        at = running()
        if tap is self.embeddings:
            x, at.ctx = self.stem(*args, **kwargs)
            at.outs.append(self.ended(0, x, at.ctx))
            return to_maps(x, at.ctx.grid)
        for i, stage in enumerate(self.encoder.stages):
            if tap is stage:
                return self.run_stage(i, stage, *args)
        return self.normed(tap, *args)

    def stem(self, pixel_values: Tensor) -> tuple[Tensor, Context]:
        """What enters the first layer, (B, N, C), and the facts of the pass."""
        embed = self.embeddings
        x, ctx = self.embed_patches(embed.patch_embeddings, None, pixel_values)
        norm = norm_tokens(embed.layernorm, ctx)
        x = self.through('embed.norm', norm, x.contiguous(), ctx)
        return self.after('embed', x, x, ctx), ctx

    def run_stage(self, index: int, stage: nn.Module, maps: Tensor) -> Tensor:
        """One stage, (B, C, H, W) -> (B, C', H', W')."""
        at, x = running(), from_maps(maps)
        if len(stage.downsampling_layer):
            x = self.downsample(index - 1, *stage.downsampling_layer, x, at.ctx)
        for block in stage.layers:
            x = block(x)
        at.outs.append(self.ended(index + 1, x, at.ctx))
        return self.handed_on(to_maps(x, at.ctx.grid), at.outs[-1])

    def ended(self, state: int, x: Tensor, ctx: Context) -> Tensor | None:
        """What leaves of a state, (B, C, H, W), None where it does not.

        It is made as its stage ends: its site reads streams that go on from there.

        Args:
            state: 0 for what enters the first stage, else that behind a stage.
            x: (B, N, C).
            ctx: Facts of this forward pass.
        """
        raise NotImplementedError

    def handed_on(self, maps: Tensor, out: Tensor | None) -> Tensor:
        """What upstream takes from a stage: its stream, by default."""
        return maps

    def normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        """What leaves of a norm behind the stages."""
        raise NotImplementedError

    def own_tokens(
        self, x: Tensor | None, ctx: Context, grid: tuple[int, ...]
    ) -> Tensor | None:
        """A recorded map, which holds no extra tokens."""
        return x


class ConvModelOfVector(ConvModel):
    """The last map leaves, and the norm of its mean."""

    def ended(self, state: int, x: Tensor, ctx: Context) -> Tensor | None:
        if state != self.depth:
            return None
        x = self.emit(x, None, ctx, state - 1)[1]
        return to_maps(x, ctx.grid)

    def handed_on(self, maps: Tensor, out: Tensor | None) -> Tensor:
        return maps if out is None else out

    def normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        call = partial(nn.LayerNorm.forward, norm)
        return self.norm_vector(call, x, running().ctx, self.depth)


class ConvModelOfMaps(ConvModel):
    """A ``*Backbone`` class: maps leave, each through a norm of its own."""

    def ended(self, state: int, x: Tensor, ctx: Context) -> Tensor | None:
        name = self.stage_names[state]
        if name not in self.out_features:
            return None
        norm = norm_tokens(self.hidden_states_norms[name], ctx)
        if state:
            x = self.emit(x, norm, ctx, state - 1)[1]
        else:
            x = self.through('out.norm', norm, x, ctx, self.depth)
        return to_maps(x, ctx.grid)

    def normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        name = next(n for n, m in self.hidden_states_norms.items() if m is norm)
        return running().outs[self.stage_names.index(name)]


class PETLConvNextModel(ConvModelOfVector, v1.ConvNextModel):
    """A ConvNextModel that runs sites."""


class PETLConvNextBackbone(ConvModelOfMaps, v1.ConvNextBackbone):
    """A ConvNextBackbone that runs sites."""


class PETLConvNextV2Model(ConvModelOfVector, v2.ConvNextV2Model):
    """A ConvNextV2Model that runs sites."""


class PETLConvNextV2Backbone(ConvModelOfMaps, v2.ConvNextV2Backbone):
    """A ConvNextV2Backbone that runs sites."""


BASE = {'depths': [3, 3, 27, 3], 'hidden_sizes': [128, 256, 512, 1024]}


class ConvMap(ConvSiteMap, TransformersMap):
    """Site map of such a model."""

    scales = ('layer_scale_parameter',)
    absent = ConvSiteMap.absent | {'feature': 'heads stand outside of the model'}
    unread = ()

    def inner_hosts(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        yield 'embeddings', backbone.embeddings
        for i, stage in enumerate(backbone.encoder.stages):
            yield f'encoder.stages.{i}', stage
        yield from self.last_norms(backbone)

    def last_norms(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Path and module of every norm behind the stages."""
        yield 'layernorm', backbone.layernorm

    def stages(
        self, backbone: nn.Module
    ) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
        for i, stage in enumerate(backbone.encoder.stages):
            opening = stage.downsampling_layer or None
            yield f'encoder.stages.{i}.layers', stage.layers, opening

    def stem(self, backbone: nn.Module) -> tuple[nn.Module, nn.Module]:
        return backbone.embeddings.patch_embeddings, backbone.embeddings.layernorm

    def widths(self, block: nn.Module) -> tuple[int, int]:
        return block.dwconv.in_channels, block.pwconv1.out_features

    def exits(self, backbone: nn.Module, facts: dict[str, Any]) -> list[Site]:
        i, depth = facts['stage'], len(backbone.encoder.stages)
        if i + 1 < depth:
            return []
        d = self.widths(backbone.encoder.stages[i].layers[0])[0]
        facts = {**facts, 'pooled': True}
        vector = {**facts, 'index': depth}
        return [
            Site('out', '', d, d, has_grid=True, **facts),
            Site('out.norm', '', d, d, **vector),
        ]

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        last = f'out_norm_{len(backbone.encoder.stages)}'
        return super().outer_modules(backbone) | {last: backbone.layernorm}

    def _kind(self, name: str, owner: nn.Module, *where: Any) -> str:
        # Its class has no word of a norm in its name.
        if name.split('.')[-2:-1] == ['grn']:
            return 'inner_norm'
        return super()._kind(name, owner, *where)


class ConvStatesMap(ConvMap):
    """Site map of such a ``*Backbone`` class, with a norm for each output.

    That of what enters the first stage is the one behind the last of them.
    """

    holders: dict[type[nn.Module], str] = {}

    def last_norms(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, norm in backbone.hidden_states_norms.items():
            yield f'hidden_states_norms.{name}', norm

    def sites(self, backbone: nn.Module) -> list[Site]:
        sites = super().sites(backbone)
        if 0 not in selected_states(backbone):
            return sites
        at = next(i for i, site in enumerate(sites) if site.kind == 'embed')
        embed, depth = sites[at], len(backbone.encoder.stages)
        d, facts = embed.in_dims, {'num_blocks': embed.num_blocks, 'stage': 0}
        facts |= {'embed_dims': d, 'patch_dims': embed.patch_dims, 'has_grid': True}
        norm = Site('out.norm', '', d, d, index=depth, **facts)
        return [*sites[: at + 1], norm, *sites[at + 1 :]]

    def exits(self, backbone: nn.Module, facts: dict[str, Any]) -> list[Site]:
        if facts['stage'] + 1 not in selected_states(backbone):
            return []
        d = self.widths(backbone.encoder.stages[facts['stage']].layers[0])[0]
        grid = {**facts, 'has_grid': True}
        return [Site('out.norm', '', d, d, **grid), Site('out', '', d, d, **grid)]

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        found = ConvSiteMap.outer_modules(self, backbone)
        depth = len(backbone.encoder.stages)
        for i in selected_states(backbone):
            norm = backbone.hidden_states_norms[backbone.stage_names[i]]
            found[f'out_norm_{i - 1 if i else depth}'] = norm
        return found


@BACKBONES.register_module()
class TransformersConvNext(ConvMap):
    """``transformers.ConvNextModel``."""

    host = v1.ConvNextModel
    host_block = v1.ConvNextLayer
    swapped = PETLConvNextModel
    swapped_block = PETLConvNextLayer
    holders = {v1.ConvNextForImageClassification: 'convnext'}
    parts = {'layernorm': (v1.ConvNextLayerNorm,)}
    taps = {
        v1.ConvNextEmbeddings: PETLConvNextEmbeddings,
        v1.ConvNextStage: PETLConvNextStage,
        nn.LayerNorm: PETLLayerNorm,
    }

    def example(self) -> nn.Module:
        return v1.ConvNextModel(ConvNextConfig(**BASE))


@BACKBONES.register_module()
class TransformersConvNextBackbone(ConvStatesMap, TransformersConvNext):
    """``transformers.ConvNextBackbone``."""

    host = v1.ConvNextBackbone
    swapped = PETLConvNextBackbone
    taps = TransformersConvNext.taps | {v1.ConvNextLayerNorm: PETLConvNextLayerNorm}

    def example(self) -> nn.Module:
        config = ConvNextConfig(**BASE, out_indices=[1, 2, 3, 4])
        return v1.ConvNextBackbone(config)


@BACKBONES.register_module()
class TransformersConvNextV2(ConvMap):
    """``transformers.ConvNextV2Model``."""

    host = v2.ConvNextV2Model
    host_block = v2.ConvNextV2Layer
    swapped = PETLConvNextV2Model
    swapped_block = PETLConvNextV2Layer
    holders = {v2.ConvNextV2ForImageClassification: 'convnextv2'}
    parts = {'layernorm': (v2.ConvNextV2LayerNorm,), 'grn': (v2.ConvNextV2GRN,)}
    taps = {
        v2.ConvNextV2Embeddings: PETLConvNextV2Embeddings,
        v2.ConvNextV2Stage: PETLConvNextV2Stage,
        nn.LayerNorm: PETLLayerNorm,
    }

    def example(self) -> nn.Module:
        return v2.ConvNextV2Model(ConvNextV2Config(**BASE))


@BACKBONES.register_module()
class TransformersConvNextV2Backbone(ConvStatesMap, TransformersConvNextV2):
    """``transformers.ConvNextV2Backbone``."""

    host = v2.ConvNextV2Backbone
    swapped = PETLConvNextV2Backbone
    taps = TransformersConvNextV2.taps | {
        v2.ConvNextV2LayerNorm: PETLConvNextV2LayerNorm
    }

    def example(self) -> nn.Module:
        config = ConvNextV2Config(**BASE, out_indices=[1, 2, 3, 4])
        return v2.ConvNextV2Backbone(config)
