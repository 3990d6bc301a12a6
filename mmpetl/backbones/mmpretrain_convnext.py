"""Sites of mmpretrain's ConvNeXt, which mmsegmentation and mmdetection use too."""

from __future__ import annotations

from collections.abc import Iterator

from mmpretrain.models.backbones.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from mmpetl.core import (
    FFN,
    Context,
    ConvBackboneHost,
    ConvBlockHost,
    ConvSiteMap,
    Rows,
    Site,
    norm_tokens,
)
from mmpetl.registry import BACKBONES


class PETLConvNeXtBlock(ConvBlockHost, ConvNeXtBlock):
    """A ConvNeXt block that runs sites."""

    def mixer(self) -> nn.Module:
        return self.depthwise_conv

    def ffn_parts(self) -> FFN:
        return FFN(
            Rows.of(self.pointwise_conv1), self.between, Rows.of(self.pointwise_conv2)
        )

    def between(self, x: Tensor, ctx: Context) -> Tensor:
        """Activation, and the response norm of version 2 over the grid."""
        x = self.act(x)
        if self.grn is None:
            return x
        y = self.grn(x.unflatten(1, ctx.grid), data_format='channel_last')
        return y.flatten(1, -2)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x if self.gamma is None else x * self.gamma)


class PETLConvNeXt(ConvBackboneHost, ConvNeXt):
    """A ConvNeXt that runs sites."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        conv, norm = self.downsample_layers[0]
        x, ctx = self.embed_patches(conv, None, x)
        x = self.through('embed.norm', norm_tokens(norm, ctx), x.contiguous(), ctx)
        x = self.after('embed', x, x, ctx)
        outs = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.downsample(i - 1, *self.downsample_layers[i], x, ctx)
            for block in stage:
                x = block(x, ctx)
            if i in self.out_indices:
                outs.append(self.output(x, ctx, i))
        return tuple(outs)

    def output(self, x: Tensor, ctx: Context, index: int) -> Tensor:
        """(B, C, H, W), or (B, C) where maps are averaged in front of the norm."""
        norm = getattr(self, f'norm{index}')
        if self.gap_before_final_norm:
            x = self.emit(x, None, ctx, index)[1].mean(1)
            norm = norm_tokens(norm, Context((1, 1)))
            return self.feature(self.norm_vector(norm, x, ctx, index), ctx, index)
        x = self.emit(x, norm_tokens(norm, ctx), ctx, index)[1]
        return x.transpose(1, 2).unflatten(2, ctx.grid).contiguous()


@BACKBONES.register_module()
class MMPretrainConvNeXt(ConvSiteMap):
    """``mmpretrain.ConvNeXt``, versions 1 and 2."""

    host = ConvNeXt
    host_block = ConvNeXtBlock
    swapped = PETLConvNeXt
    swapped_block = PETLConvNeXtBlock
    scales = ('gamma',)

    def example(self) -> nn.Module:
        return ConvNeXt(arch='base')

    def stages(
        self, backbone: nn.Module
    ) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
        for i, stage in enumerate(backbone.stages):
            opening = backbone.downsample_layers[i] if i else None
            yield f'stages.{i}', stage, opening

    def stem(self, backbone: nn.Module) -> tuple[nn.Module, nn.Module]:
        return tuple(backbone.downsample_layers[0])

    def widths(self, block: nn.Module) -> tuple[int, int]:
        return block.depthwise_conv.in_channels, block.pointwise_conv1.weight.shape[0]

    def exits(self, backbone: nn.Module, facts: dict) -> list[Site]:
        if facts['stage'] not in backbone.out_indices:
            return []
        pooled = backbone.gap_before_final_norm
        d = self.widths(backbone.stages[facts['stage']][0])[0]
        grid, vector = ({**facts, 'has_grid': has} for has in (True, False))
        norm = Site('out.norm', '', d, d, pooled=pooled, **(vector if pooled else grid))
        out = Site('out', '', d, d, pooled=pooled, **grid)
        if not pooled:
            return [norm, out]
        return [out, norm, Site('feature', '', d, d, pooled=pooled, **vector)]

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        norms = {f'out_norm_{i}': f'norm{i}' for i in backbone.out_indices}
        found = {key: getattr(backbone, name) for key, name in norms.items()}
        return super().outer_modules(backbone) | found
