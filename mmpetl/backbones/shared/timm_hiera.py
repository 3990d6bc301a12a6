"""What timm's Hiera and HieraDet share: windows, shortcuts, heads, interfaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.layers import ClNormMlpClassifierHead, Mlp
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mmpetl.backbones.shared.pooling import Extents, PoolingHost, pooling_sites
from mmpetl.backbones.shared.timm_model import KeepsBlocks
from mmpetl.backbones.shared.timm_plain import network
from mmpetl.core import (
    FFN,
    BackboneHost,
    Context,
    PETLError,
    Site,
    SiteMap,
    WindowBlockHost,
    without_extra,
)


class HieraHost(PoolingHost, WindowBlockHost):
    """A block of ``attn`` and ``mlp`` whose queries are pooled inside of their window.

    Extra tokens join every window, are not pooled, and are averaged over the windows.
    """

    def window_terms(self, *_: Any) -> dict[str, Any]:
        return {'bias': None, 'mask': None}

    def pool_queries(self, q: Tensor, own: int, grid: Extents) -> Tensor:
        """(B * windows, heads, own + tokens, d) -> the same with fewer tokens.

        Args:
            q: Queries.
            own: Tokens in front of those of the window, which stay.
            grid: Grid of the input.
        """
        raise NotImplementedError

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': num_heads(attn),
            'qkv': attn.qkv,
            'proj': attn.proj,
            'scale': attn.scale,
            'prepare': self.pooled,
        }

    def pooled(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pool the queries; it moves ``ctx.grid``."""
        if self.pools and all(ctx.grid):
            own = q.shape[2] - self.partition(ctx.grid).tokens
            q = self.pool_queries(q, own, ctx.grid)
            ctx.grid = self.grid_behind(ctx.grid)
        return q, k, v

    def ffn_parts(self) -> FFN:
        return network(self.mlp)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        scale, drop = (
            (self.ls1, self.drop_path1) if branch == 1 else (self.ls2, self.drop_path2)
        )
        return drop(scale(x))


class HieraTrunk(KeepsBlocks, BackboneHost):
    """``blocks`` one after the other and a ``head`` that pools and norms."""

    @property
    def last(self) -> int:
        """Index of the last stage, which is that of the output."""
        return stage_of(self, len(self.blocks) - 1)

    def embedded(self, x: Tensor, *args: Any) -> tuple[Tensor, Context]:
        """What enters the first block, (B, N, C), and the facts of the pass."""
        raise NotImplementedError

    def map_of(self, x: Tensor, ctx: Context, index: int, *args: Any) -> Tensor:
        """The map behind a block, (B, N, C) -> (B, H, W, C)."""
        raise NotImplementedError

    def run_blocks(
        self, x: Tensor, ctx: Context, count: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Every block in turn: its index, and what leaves behind it, (B, N, C)."""
        for i, block in enumerate(self.blocks[:count]):
            block.with_cp = self.grad_checkpointing
            x = block(x, ctx)
            if i == len(self.blocks) - 1:
                yield i, self.emit(x, None, ctx, self.last)[1]
            else:
                yield i, without_extra(x, ctx)

    def intermediates(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        indices: int | list[int] | None,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
        coarse: bool,
    ) -> tuple[Tensor, Context, list[Tensor]]:
        """The last output (B, N, C), its facts, and the maps that are asked for."""
        if norm:
            raise PETLError('no norm follows the stages; leave norm=True out')
        if output_fmt not in ('NCHW', 'NHWC'):
            raise PETLError(f'output_fmt is NCHW or NHWC, got {output_fmt!r}')
        count = len(self.stage_ends) if coarse else len(self.blocks)
        taken, deepest = feature_take_indices(count, indices)
        if coarse:
            taken = [self.stage_ends[i] for i in taken]
            deepest = self.stage_ends[deepest]
        x, ctx = self.embedded(x, *args)
        found = []
        for i, y in self.run_blocks(x, ctx, deepest + 1 if stop_early else None):
            if i in taken:
                maps = self.map_of(y, ctx, i, *args)
                found.append(maps.permute(0, 3, 1, 2) if output_fmt == 'NCHW' else maps)
        return y, ctx, found

    def head_of(self, x: Tensor, ctx: Context, pre_logits: bool = False) -> Tensor:
        """What upstream's head makes of the tokens (B, N, C), with its site."""
        head, pool = self.head, self.head.pool_type
        if not pool:
            x = self.through('out.norm', head.norm, x, ctx, self.last + 1)
        else:
            pooled = [x.mean(1)] if pool.startswith('avg') else []
            pooled += [x.amax(1)] if pool.endswith('max') else []
            x = pooled[0] if len(pooled) == 1 else 0.5 * (pooled[1] + pooled[0])
            x = self.norm_vector(head.norm, x, ctx, self.last + 1)
        x = head.drop(head.pre_logits(x))
        return x if pre_logits else head.fc(x)

    def reset_classifier(
        self,
        num_classes: int,
        global_pool: str | None = None,
        reset_other: bool = False,
    ) -> None:
        """Another head, which trains; pooling and norm stay, as the sites follow them.

        Raises:
            PETLError: Another pooling is asked for, or the norm is to go.
        """
        if global_pool not in (None, self.head.pool_type) or reset_other:
            raise PETLError(
                f'the sites stand for a head that pools by {self.head.pool_type!r} and '
                'norms; change global_pool or reset_other before inject'
            )
        super().reset_classifier(num_classes)


def num_heads(attn: nn.Module) -> int:
    """Attention heads, under the names of both classes."""
    return attn.heads if hasattr(attn, 'heads') else attn.num_heads


def stage_of(backbone: nn.Module, block: int) -> int:
    """Stage of a block; a pruned model holds the first ones."""
    return sum(block > end for end in backbone.stage_ends)


class HieraMap(SiteMap):
    """Site map of such a backbone."""

    head = ('head.fc',)
    head_dropout = ('head.drop',)
    scales = ('gamma',)
    tokens = ()
    absent = {
        'embed.norm': 'patches are not normed',
        'feature': 'blocks widen from stage to stage, so none is made of what all of '
        'them see',
    }
    parts: dict[str, tuple[type[nn.Module], ...]] = {'mlp': (Mlp,)}
    outer_parts: dict[str, tuple[type[nn.Module], ...]] = {
        'head': (ClNormMlpClassifierHead,)
    }

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        """``pools``, and what ``block_sites`` is to know of windows."""
        raise NotImplementedError

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.blocks):
            yield f'blocks.{i}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        projection, head = backbone.patch_embed.proj, backbone.head
        first, patch = projection.out_channels, projection.weight[0].numel()
        depth, has_grid = len(backbone.blocks), not self.flat
        facts = {'num_blocks': depth, 'embed_dims': first, 'patch_dims': patch}
        at = {**facts, 'stage': 0, 'has_grid': has_grid}
        sites = [
            Site('embed.proj', '', patch, first, **{**at, 'has_grid': True}),
            Site('embed', '', first, first, **at),
        ]
        for i, (path, block) in enumerate(self.blocks(backbone)):
            widths = block.dim, block.dim_out, block.dim_out
            inside = {**facts, 'stage': stage_of(backbone, i), 'block': i}
            inside |= {'num_heads': num_heads(block.attn), **self.block_facts(block)}
            hidden = block.mlp.fc1.out_features
            sites += pooling_sites(path, widths, hidden, has_grid=has_grid, **inside)
        d, last = backbone.num_features, stage_of(backbone, depth - 1)
        at = {**facts, 'stage': last, 'pooled': head.pool_type == 'avg'}
        sites.append(Site('out', '', d, d, index=last, has_grid=has_grid, **at))
        if not isinstance(head.norm, nn.Identity):
            flat = has_grid and not head.pool_type
            sites.append(
                Site('out.norm', '', d, d, index=last + 1, has_grid=flat, **at)
            )
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        last = stage_of(backbone, len(backbone.blocks) - 1)
        return {
            'embed_proj': backbone.patch_embed.proj,
            f'out_norm_{last + 1}': backbone.head.norm,
        }
