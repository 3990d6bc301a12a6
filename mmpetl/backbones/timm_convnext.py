"""Sites of timm's ConvNeXt, versions 1 and 2, of Facebook, CLIP, DINOv3 and others."""

from __future__ import annotations

from collections.abc import Iterator

from timm.layers import GlobalResponseNormMlp, Mlp, NormMlpClassifierHead
from timm.models._features import feature_take_indices
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_model import KeepsBlocks
from mmpetl.core import (
    FFN,
    Context,
    ConvBackboneHost,
    ConvBlockHost,
    ConvSiteMap,
    PETLError,
    Rows,
    Site,
    from_maps,
    norm_tokens,
)
from mmpetl.registry import BACKBONES


class PETLConvNeXtBlock(ConvBlockHost, ConvNeXtBlock):
    """A ConvNeXt block that runs sites."""

    def mixer(self) -> nn.Module:
        return self.conv_dw

    def ffn_parts(self) -> FFN:
        mlp = self.mlp
        return FFN(Rows.of(mlp.fc1), self.between, Rows.of(mlp.fc2), mlp.drop2)

    def between(self, x: Tensor, ctx: Context) -> Tensor:
        """Activation, dropout, and the response norm of version 2 over the grid."""
        mlp = self.mlp
        x = mlp.drop1(mlp.act(x))
        if not isinstance(mlp, GlobalResponseNormMlp):
            return mlp.norm(x)
        x = x.unflatten(1, ctx.grid)
        if mlp.grn.channel_dim == 1:
            y = mlp.grn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            y = mlp.grn(x)
        return y.flatten(1, -2)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x if self.gamma is None else x * self.gamma)


class PETLConvNeXt(KeepsBlocks, ConvBackboneHost, ConvNeXt):
    """A ConvNeXt that runs sites."""

    def forward(self, x: Tensor) -> Tensor:
        x, ctx = self.tokens_of(x)
        return self.head_of(x, ctx)

    def forward_features(self, x: Tensor) -> Tensor:
        x, ctx = self.tokens_of(x)
        return _maps(x, ctx)

    @property
    def last(self) -> int:
        """Index of the last stage."""
        return len(self.stages) - 1

    def embedded(self, x: Tensor) -> tuple[Tensor, Context]:
        """What enters the first block, (B, N, C), and the facts of the pass."""
        if len(self.stem) == 2:
            conv, norm = self.stem
            x, ctx = self.embed_patches(conv, None, x)
            x = x.contiguous()
            x = self.through('embed.norm', norm_tokens(norm, ctx), x, ctx)
        else:
            images = x
            x = self.stem(x)
            ctx = self.new_context(tuple(x.shape[2:]))
            ctx.images = images
            x = from_maps(x)
        return self.after('embed', x, x, ctx), ctx

    def run_stage(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        """One stage with what opens it; it moves ``ctx.grid``."""
        stage = self.stages[index]
        if not isinstance(stage.downsample, nn.Identity):
            x = self.downsample(index - 1, *stage.downsample, x, ctx)
        for block in stage.blocks:
            block.with_cp = stage.grad_checkpointing
            x = block(x, ctx)
        return x

    def tokens_of(self, x: Tensor) -> tuple[Tensor, Context]:
        """What leaves behind the last stage, (B, N, C), and the facts of the pass."""
        x, ctx = self.embedded(x)
        for index in range(len(self.stages)):
            x = self.run_stage(index, x, ctx)
        return self.ended(x, ctx, True), ctx

    def head_of(self, x: Tensor, ctx: Context) -> Tensor:
        """What upstream's head makes of the maps, with its sites."""
        head = self.head
        x = head.global_pool(_maps(x, ctx))
        if isinstance(head, NormMlpClassifierHead):
            if x.shape[2:] == (1, 1) and head.flatten(x).ndim == 2:
                norm = norm_tokens(head.norm, Context((1, 1)))
                x = self.norm_vector(norm, x.flatten(1), ctx, self.last + 1)
                x = x[:, :, None, None]
            else:
                x = head.norm(x)
            x = head.drop(head.pre_logits(head.flatten(x)))
        else:
            x = head.drop(x)
        if x.ndim == 2:
            x = self.feature(x, ctx, self.last)
        x = head.fc(x)
        return x if isinstance(head, NormMlpClassifierHead) else head.flatten(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.plugged('feature', self.last):
            raise PETLError(
                'forward_head alone does not know the pass that its features come '
                'from, which the deltas at `feature` need; call the model as a whole'
            )
        return super().forward_head(x, pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of several stages, as upstream gives them.

        What a method does at ``out`` it does to the output of the last stage.
        """
        if output_fmt != 'NCHW':
            raise PETLError(f'output_fmt is NCHW, got {output_fmt!r}')
        taken, deepest = feature_take_indices(len(self.stages), indices)
        x, ctx = self.embedded(x)
        found, index = [], 0
        for index in range(len(self.stages)):
            if stop_early and index > deepest:
                index -= 1
                break
            x = self.run_stage(index, x, ctx)
            if index in taken:
                y = self.ended(x, ctx, norm) if index == self.last else x
                found.append(_maps(y, ctx))
        if intermediates_only:
            return found
        end = self.ended(x, ctx, True) if index == self.last else x
        return _maps(end, ctx), found

    def ended(self, x: Tensor, ctx: Context, norm: bool) -> Tensor:
        """What leaves behind the last stage, with or without a norm of all tokens."""
        found = norm_tokens(self.norm_pre, ctx) if norm else None
        return self.emit(x, found, ctx, self.last)[1]


def _maps(x: Tensor, ctx: Context) -> Tensor:
    """(B, N, C) -> (B, C, H, W), contiguous."""
    return x.transpose(1, 2).unflatten(2, ctx.grid).contiguous()


@BACKBONES.register_module()
class TimmConvNeXt(ConvSiteMap):
    """``timm.models.convnext.ConvNeXt``."""

    host = ConvNeXt
    host_block = ConvNeXtBlock
    head = ('head.fc',)
    head_dropout = ('head.drop',)
    swapped = PETLConvNeXt
    swapped_block = PETLConvNeXtBlock
    parts = {'mlp': (Mlp, GlobalResponseNormMlp), 'shortcut': (nn.Identity,)}
    scales = ('gamma',)

    def example(self) -> nn.Module:
        return ConvNeXt(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024), num_classes=0)

    def stages(
        self, backbone: nn.Module
    ) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
        for i, stage in enumerate(backbone.stages):
            opens = not isinstance(stage.downsample, nn.Identity)
            yield (
                f'stages.{i}.blocks',
                stage.blocks,
                stage.downsample if opens else None,
            )

    def stem(self, backbone: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
        return tuple(backbone.stem) if len(backbone.stem) == 2 else (None, None)

    def why_absent(self, backbone: nn.Module, kind: str) -> str | None:
        if kind.startswith('embed.') and len(backbone.stem) != 2:
            return 'the stem is made of several convolutions'
        return super().why_absent(backbone, kind)

    def widths(self, block: nn.Module) -> tuple[int, int]:
        return block.conv_dw.in_channels, block.mlp.fc1.weight.shape[0]

    def exits(self, backbone: nn.Module, facts: dict) -> list[Site]:
        last = len(backbone.stages) - 1
        if facts['stage'] != last:
            return []
        d, head = backbone.num_features, backbone.head
        pooled = head.global_pool.pool_type == 'avg'
        grid, vector = ({**facts, 'has_grid': has} for has in (True, False))
        sites = []
        if not isinstance(backbone.norm_pre, nn.Identity):
            sites.append(Site('out.norm', '', d, d, pooled=pooled, **grid))
        sites.append(Site('out', '', d, d, pooled=pooled, **grid))
        normed = isinstance(head, NormMlpClassifierHead) and head.global_pool.pool_type
        if normed and not isinstance(head.norm, nn.Identity):
            vector['index'] = last + 1
            sites.append(Site('out.norm', '', d, d, pooled=pooled, **vector))
        if isinstance(head.fc, nn.Identity) and head.global_pool.pool_type:
            vector['index'] = last
            wide = head.num_features
            sites.append(Site('feature', '', wide, wide, pooled=pooled, **vector))
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        last = len(backbone.stages) - 1
        found = {f'out_norm_{last}': backbone.norm_pre}
        if isinstance(backbone.head, NormMlpClassifierHead):
            found[f'out_norm_{last + 1}'] = backbone.head.norm
        return super().outer_modules(backbone) | found
