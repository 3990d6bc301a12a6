"""Sites of transformers' SwinModel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.swin.configuration_swin import SwinConfig
from transformers.models.swin.modeling_swin import (
    SwinAttention,
    SwinBackbone,
    SwinEmbeddings,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinLayer,
    SwinMLP,
    SwinModel,
    SwinStage,
)

from mmpetl.backbones.shared.transformers_models import (
    LayerHost,
    ModelHost,
    PETLConv2d,
    PETLLayerNorm,
    Tap,
    TransformersMap,
    running,
)
from mmpetl.core import (
    Context,
    Partition,
    PETLError,
    Site,
    WindowBackboneHost,
    WindowBlockHost,
    block_sites,
    without_extra,
)
from mmpetl.core.injection import record_of
from mmpetl.registry import BACKBONES


class PETLSwinLayer(LayerHost, WindowBlockHost, SwinLayer):
    """A layer that runs sites.

    Where a map is no larger than a window, upstream forgets the shift for good; here
    that holds for the pass. With ``always_partition`` a map is padded to whole windows
    and shifted, however small it is.
    """

    def take(
        self,
        ctx: Context,
        input_dimensions: tuple[int, int] = (),
        always_partition: bool = False,
        **kwargs: Any,
    ) -> None:
        ctx.handed = always_partition

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.layernorm_before, self.layernorm_after

    def attended(self, x: Tensor, ctx: Context) -> Tensor:
        return WindowBlockHost.attention(self, x, ctx)

    def returned(self, y: Tensor) -> tuple[Tensor, None]:
        return y, None

    def partition(self, grid: tuple[int, ...]) -> Partition:
        size = self.attention.relative_position_bias.window_size
        if min(grid) < size[0]:
            raise PETLError(
                f'the map {grid[0]} x {grid[1]} is smaller than the window of '
                f'{size[0]} that the position table is for; take a larger input'
            )
        shift = self.shift_size if min(grid) > size[0] else 0
        return Partition(tuple(grid), tuple(size), (shift, shift))

    def cut(self, ctx: Context) -> Partition:
        if not ctx.handed:
            return super().cut(ctx)
        size = self.attention.relative_position_bias.window_size
        return Partition(tuple(ctx.grid), tuple(size), (self.shift_size,) * 2)

    def position_bias(self, num_tokens: int) -> Tensor:
        return self.attention.relative_position_bias()[0]

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.dropout(x)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x) if branch == 1 else x


class PETLSwinStage(SwinStage):
    """A stage whose patch merging runs sites."""

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        always_partition: bool = False,
        output_hidden_states_before_downsampling: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, None]:
        at = running()
        if at is None:
            raise PETLError(
                'a stage of an injected model knows no grid of its own; call the model '
                'as a whole'
            )
        x = hidden_states
        for block in self.blocks:
            x, _ = block(x, input_dimensions, always_partition=always_partition)
        index = at.model.place_of_stage(self)
        inside = at.model.ended(index, x, at.ctx)
        if self.downsample is not None:
            x = at.model.merge_patches(index, self.downsample, x, at.ctx)
        at.grids.append(at.ctx.grid)
        maps = self.get_reshaped_hidden_states(
            without_extra(x, at.ctx),
            inside,
            *input_dimensions,
            output_hidden_states_before_downsampling,
        )
        return x, maps, None


# Its layers save memory one by one, see LayerHost.
PETLSwinStage.forward = PETLSwinStage.forward.__wrapped__


class PETLSwinEmbeddings(Tap, SwinEmbeddings):
    """Patches, their norm and, in some models, positions."""


class PETLSwinModel(ModelHost, WindowBackboneHost, SwinModel):
    """A SwinModel that runs sites."""

    @property
    def depth(self) -> int:
        """Number of stages, by which outputs are counted."""
        return len(self.encoder.layers)

    def place_of_stage(self, stage: nn.Module) -> int:
        """Index of a stage."""
        return next(i for i, s in enumerate(self.encoder.layers) if s is stage)

    def ended(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        """The map of a stage, (B, N, C), in front of the merging."""
        if not record_of(self).site_map.states_of(self):
            return without_extra(x, ctx)
        return self.emit(x, None, ctx, index)[1]

    def embedded(
        self, y: tuple[Tensor, tuple[int, int]], ctx: Context
    ) -> tuple[Tensor, tuple[int, int]]:
        ctx.grid = tuple(map(int, ctx.grid))
        running().grids.append(ctx.grid)
        return self.after('embed', y[0], y[0], ctx), y[1]

    def gather(
        self, merge: nn.Module, x: Tensor, grid: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        x = merge.maybe_pad(x.unflatten(1, grid), *grid)
        four = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
        return torch.cat(four, dim=-1).flatten(1, 2), tuple(-(-n // 2) for n in grid)

    def repeat_four(self, x: Tensor) -> Tensor:
        return x.repeat(1, 1, 4)


@BACKBONES.register_module()
class TransformersSwin(TransformersMap):
    """``transformers.SwinModel``."""

    host = SwinModel
    host_block = SwinLayer
    swapped = PETLSwinModel
    swapped_block = PETLSwinLayer
    holders = dict.fromkeys(
        (SwinBackbone, SwinForImageClassification, SwinForMaskedImageModeling), 'swin'
    )
    embed_norm = 'embeddings.norm'
    parts = {'attention': (SwinAttention,), 'mlp': (SwinMLP,)}
    taps = {
        nn.Conv2d: PETLConv2d,
        SwinEmbeddings: PETLSwinEmbeddings,
        SwinStage: PETLSwinStage,
        nn.LayerNorm: PETLLayerNorm,
    }
    position_biases = ('relative_position_bias_table',)

    def example(self) -> nn.Module:
        size = {'embed_dim': 128, 'depths': [2, 2, 18, 2], 'num_heads': [4, 8, 16, 32]}
        return SwinModel(SwinConfig(**size))

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, stage in enumerate(backbone.encoder.layers):
            for j, block in enumerate(stage.blocks):
                yield f'encoder.layers.{i}.blocks.{j}', block

    def inner_hosts(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        yield from super().inner_hosts(backbone)
        for i, stage in enumerate(backbone.encoder.layers):
            yield f'encoder.layers.{i}', stage

    def sites(self, backbone: nn.Module) -> list[Site]:
        projection = backbone.get_submodule(self.projection)
        d = projection.out_channels
        patch = projection.in_channels * math.prod(projection.kernel_size)
        stages = backbone.encoder.layers
        depth = sum(len(stage.blocks) for stage in stages)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch}
        first = {**facts, 'stage': 0, 'has_grid': True}
        sites = [Site('embed.proj', '', patch, d, **first)]
        sites.append(Site('embed.norm', '', d, d, **first))
        sites.append(Site('embed', '', d, d, **first))
        counter, states = 0, self.states_of(backbone)
        for i, stage in enumerate(stages):
            for j, block in enumerate(stage.blocks):
                sites += block_sites(
                    f'encoder.layers.{i}.blocks.{j}',
                    d,
                    block.mlp.fc1.out_features,
                    windowed=True,
                    block=counter,
                    stage=i,
                    num_heads=block._modules['attention'].num_attention_heads,
                    window=tuple(self.table(block).window_size),
                    shift=(int(block.shift_size),) * 2,
                    **facts,
                )
                counter += 1
            at = {**facts, 'stage': i, 'has_grid': True, 'index': i}
            if i + 1 in states:
                window = tuple(self.table(stage.blocks[-1]).window_size)
                sites.append(Site('out', '', d, d, window=window, **at))
            if stage.downsample is not None:
                wide, out = 4 * d, stage.downsample.reduction.out_features
                between = {**at, 'merged': (2, 2)}
                sites.append(Site('downsample.norm', '', wide, wide, **between))
                sites.append(Site('downsample.reduction', '', wide, out, **between))
                sites.append(Site('downsample', '', d, out, **between))
                d = out
        if states:
            return sites
        sites.append(Site('out.norm', '', d, d, **at))
        window = tuple(self.table(stages[-1].blocks[-1]).window_size)
        sites.append(Site('out', '', d, d, window=window, pooled=True, **at))
        return sites

    def table(self, block: nn.Module) -> nn.Module:
        """What holds the position table of a block, and its window."""
        return block._modules['attention'].relative_position_bias

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        stages = backbone.encoder.layers
        modules = {
            'embed_proj': backbone.get_submodule(self.projection),
            'embed_norm': backbone.embeddings.norm,
            f'out_norm_{len(stages) - 1}': backbone.layernorm,
        }
        for i, stage in enumerate(stages):
            if stage.downsample is not None:
                modules[f'downsample_norm_{i}'] = stage.downsample.norm
                modules[f'downsample_reduction_{i}'] = stage.downsample.reduction
        return modules
