"""What timm's plain transformers share: interfaces, attention, networks, sites."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import GluMlp, HybridEmbed, Mlp, PatchEmbed, SwiGLU
from timm.models._features import feature_take_indices
from timm.models.vitamin import GeGluMlp
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_model import TimmModel
from mmpetl.core import (
    FFN,
    BlockHost,
    Context,
    PETLError,
    Rows,
    Site,
    SiteMap,
    Stack,
    block_sites,
    without_extra,
)

NETWORKS = (Mlp, GluMlp, SwiGLU, GeGluMlp)
"""Classes of feed-forward networks that :func:`network` takes apart."""


def network(mlp: nn.Module) -> FFN:
    """The parts of a feed-forward network of timm, gated or not."""
    if isinstance(mlp, GeGluMlp):
        return FFN(
            Stack(mlp.w0, mlp.w1),
            lambda x, _: mlp.drop1(_product(mlp.act, x, first=True)),
            mlp.w2,
            mlp.drop2,
            by_token=True,
        )
    if isinstance(mlp, Mlp):
        return FFN.of(mlp.fc1, (mlp.act, mlp.drop1, mlp.norm), mlp.fc2, mlp.drop2)
    if isinstance(mlp, GluMlp):
        fc1, inner = mlp.fc1, partial(_product, mlp.act, first=not mlp.gate_last)
    else:
        fc1 = Stack(mlp.fc1_g, mlp.fc1_x)
        inner = partial(_product, mlp.act, first=True)
    return FFN(
        fc1,
        lambda x, _: mlp.norm(mlp.drop1(inner(x))),
        mlp.fc2,
        mlp.drop2,
        by_token=True,
    )


def _product(act: nn.Module, x: Tensor, first: bool) -> Tensor:
    """Gate times value, (..., 2 m) -> (..., m).

    Args:
        act: Activation of the gate.
        x: Gate and value next to each other.
        first: Whether the gate is the first half.
    """
    a, b = x.chunk(2, dim=-1)
    return act(a) * b if first else a * act(b)


def biased_qkv(attn: nn.Module, free: bool) -> nn.Module | Rows:
    """A fused projection whose biases lie beside it, those of keys always zero.

    Args:
        attn: With ``qkv``, ``q_bias``, ``k_bias``, ``v_bias`` and
            ``qkv_bias_separate``.
        free: Whether a bias of keys would change nothing.
    """
    if attn.q_bias is None:
        return attn.qkv
    parts = (attn.q_bias, len(attn.k_bias), attn.v_bias)
    rows = Rows(attn.qkv.weight, parts, free=free)
    if attn.qkv_bias_separate:
        rows.call = lambda x: attn.qkv(x) + rows.full_bias()
    return rows


class TimmBlock(BlockHost):
    """A block of ``attn`` and ``mlp``, with what most attentions of timm consist of."""

    mlp: nn.Module

    def projections(self) -> nn.Module | Rows | Stack:
        """The projection to queries, keys and values."""
        return self.attn.qkv

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': self.projections(),
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'prepare': self.norm_heads,
            'behind': self.norm_and_gate,
        }

    def norm_heads(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Norms of queries and keys per head, identities in most models."""
        return self.attn.q_norm(q), self.attn.k_norm(k), v

    def norm_and_gate(self, o: Tensor, q: Tensor, x: Tensor, ctx: Context) -> Tensor:
        """Norm and sigmoid gate in front of the output projection, where there are."""
        norm = getattr(self.attn, 'norm', None)
        gate = getattr(self.attn, 'gate', None)
        o = o if norm is None else norm(o)
        return o if gate is None else o * gate(x).sigmoid()

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self) -> FFN:
        return network(self.mlp)

    def ffn_network(self, x: Tensor, ctx: Context) -> Tensor:
        # This one norms once more, behind the norm of the block.
        x = self.mlp.norm(x) if isinstance(self.mlp, GeGluMlp) else x
        return super().ffn_network(x, ctx)


class GammaBlock(TimmBlock):
    """A block whose layer scales are parameters of its own, or None."""

    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def residual(self, branch: int, x: Tensor) -> Tensor:
        gamma, drop = (
            (self.gamma_1, self.drop_path1)
            if branch == 1
            else (self.gamma_2, self.drop_path2)
        )
        return drop(x if gamma is None else gamma * x)


class TimmTrunk(TimmModel):
    """A patch embedding, ``blocks`` one after the other and a ``head``."""

    @property
    def last(self) -> int:
        """Index of the last block, which is that of the output behind it."""
        return len(self.blocks) - 1

    def run_block(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        """One block, (B, num_prefix + N, C), with upstream's switch for memory."""
        block = self.blocks[index]
        block.with_cp = self.grad_checkpointing
        return block(x, ctx)


class TimmPlain(TimmTrunk):
    """A plain transformer of timm that runs sites.

    A subclass inherits the foreign class too. Where that makes more of the patches than
    ``_pos_embed`` and ``norm_pre`` do, it overrides :meth:`positioned`.
    """

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        x, ctx = self.tokens_of(x, attn_mask, is_causal)
        return self.head_of(x, ctx)

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return self.tokens_of(x, attn_mask, is_causal)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.plugged('feature', self.last):
            raise PETLError(
                'forward_head alone does not know the pass that its features come '
                'from, which the deltas at `feature` need; call the model as a whole'
            )
        grid = tuple(self.patch_embed.grid_size)
        ctx = self.new_context(grid, self.num_prefix_tokens)
        return self.head_of(x, ctx, pre_logits)

    def tokens_of(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Context]:
        """The normed tokens, and the facts of the pass that made them."""
        x, ctx = self.embedded(x, attn_mask, is_causal)
        for i in range(len(self.blocks)):
            x = self.run_block(i, x, ctx)
        return self.emit(x, self.norm, ctx, self.last)[1], ctx

    def embedded(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Context]:
        """What enters the first block, and the facts of the pass."""
        if attn_mask is not None or is_causal:
            raise PETLError('a backbone with sites takes no attn_mask and no is_causal')
        embed = self.patch_embed
        if isinstance(embed, PatchEmbed):
            x, ctx = self.embed_patches(embed.proj, embed.norm, self.fitted(x))
        else:
            x, ctx = self.stemmed(embed, x)
        # timm keeps the grid where the input size may vary; deltas see (B, N, C).
        x = self.positioned(x if embed.flatten else x.unflatten(1, ctx.grid), ctx)
        ctx.num_prefix = self.num_prefix_tokens
        return self.after('embed', x, x, ctx), ctx

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        """What enters the first block, (B, num_prefix_tokens + N, C).

        Args:
            x: Patches, (B, N, C), or (B, H, W, C) where the input size may vary.
            ctx: Facts of this forward pass; :attr:`Context.handed` may be set.
        """
        return self.norm_pre(self._pos_embed(x))

    def stemmed(self, embed: HybridEmbed, x: Tensor) -> tuple[Tensor, Context]:
        """Patches of the map that a convolutional stem makes, (B, N, C)."""
        images, x = x, embed.backbone(x)
        if isinstance(x, list | tuple):
            x = x[-1]
        if embed.dynamic_img_pad:
            pads = [-n % p for n, p in zip(x.shape[2:], embed.patch_size, strict=True)]
            x = F.pad(x, (0, pads[1], 0, pads[0]))
        x = embed.proj(x)
        ctx = self.new_context(tuple(x.shape[2:]))
        if embed.flatten and ctx.grid != tuple(embed.grid_size):
            raise PETLError(
                f'the model takes images of {tuple(embed.img_size)}, got '
                f'{tuple(images.shape[2:])}; call set_input_size, or build it with '
                'dynamic_img_size=True'
            )
        ctx.images = images
        return x.flatten(2).transpose(1, 2), ctx

    def head_of(self, x: Tensor, ctx: Context, pre_logits: bool = False) -> Tensor:
        """What upstream's ``forward_head`` makes of the tokens, with its sites."""
        x = self.pool(x)
        if x.ndim == 2:
            x = self.norm_vector(self.fc_norm, x, ctx, self.last + 1)
        else:
            x = self.through('out.norm', self.fc_norm, x, ctx, self.last + 1)
        x = self.head_drop(x)
        if x.ndim == 2:
            x = self.feature(x, ctx, self.last)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]] | dict[str, Any]:
        """Outputs of several blocks, as upstream gives them.

        Deltas act and extra tokens do not leave. What a method does at ``out`` it does
        to the output of the last block.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise PETLError(f'output_fmt is NCHW or NLC, got {output_fmt!r}')
        taken, deepest = feature_take_indices(len(self.blocks), indices)
        x, ctx = self.embedded(x, attn_mask, is_causal)
        found = []
        for i in range(len(self.blocks)):
            if stop_early and i > deepest:
                break
            x = self.run_block(i, x, ctx)
            if i in taken:
                found.append(self.intermediate(x, ctx, i, norm))
        own = self.num_prefix_tokens
        prefixes = [y[:, :own] for y in found] if own and return_prefix_tokens else None
        found = [y[:, own:] for y in found]
        if output_fmt == 'NCHW':
            found = [
                y.unflatten(1, ctx.grid).permute(0, 3, 1, 2).contiguous() for y in found
            ]
        if output_dict:
            result = {'image_intermediates': found}
            if prefixes is not None:
                result['image_intermediates_prefix'] = prefixes
            if not intermediates_only:
                result['image_features'] = self.emit(x, self.norm, ctx, self.last)[1]
            return result
        if prefixes is not None:
            found = list(zip(found, prefixes, strict=True))
        if intermediates_only:
            return found
        return self.emit(x, self.norm, ctx, self.last)[1], found

    def intermediate(self, x: Tensor, ctx: Context, index: int, norm: bool) -> Tensor:
        """What leaves behind a block: class tokens and grid, (B, own + N, C)."""
        if index == self.last:
            return self.emit(x, self.norm if norm else None, ctx, index)[1]
        if norm:
            x = self.through('out.norm', self.norm, x, ctx, self.last)
        return without_extra(x, ctx)

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Resize the position tables, which are part of the base from then on."""
        resize = partial(super().set_input_size, img_size)
        self.resize_input(img_size, patch_size, resize)


class TimmPlainMap(SiteMap):
    """Sites of a plain transformer of timm.

    Attributes:
        embeds: Classes of ``patch_embed`` that are served.
    """

    head = ('head',)
    head_dropout = ('head_drop',)
    embeds: tuple[type[nn.Module], ...] = (PatchEmbed,)
    tokens = ('cls_token', 'reg_token')
    biases = ('bias', 'q_bias', 'v_bias')

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        embed = backbone.patch_embed
        self.check_class('patch_embed', embed, self.embeds)
        if isinstance(embed, PatchEmbed):
            self.check_class('patch_embed.proj', embed.proj, (nn.Conv2d,))
        drop = getattr(backbone, 'patch_drop', None)
        if drop is not None and not isinstance(drop, nn.Identity):
            raise PETLError(
                'timm dropped patches (patch_drop_rate > 0) leave no grid; '
                'build the model with patch_drop_rate=0'
            )

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.blocks):
            yield f'blocks.{i}', block

    def sites_of_block(
        self, path: str, module: nn.Module, dims: int, **facts: Any
    ) -> list[Site]:
        """The sites of one block, its width being ``dims``."""
        attn, mlp = module.attn, module.mlp
        last = mlp.w2 if isinstance(mlp, GeGluMlp) else mlp.fc2
        return block_sites(
            path,
            dims,
            last.in_features,
            attn_dims=attn.proj.in_features,
            kv_dims=getattr(attn, 'kv_dim', None),
            gated=not isinstance(mlp, Mlp),
            num_heads=attn.num_heads,
            **facts,
        )

    def sites(self, backbone: nn.Module) -> list[Site]:
        d, embed = backbone.embed_dim, backbone.patch_embed
        patch = backbone.in_chans * math.prod(embed.feat_ratio(as_scalar=False))
        depth = len(backbone.blocks)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        sites = []
        if isinstance(embed, PatchEmbed):
            sites.append(Site('embed.proj', '', patch, d, has_grid=True, **facts))
            if not isinstance(embed.norm, nn.Identity):
                sites.append(Site('embed.norm', '', d, d, has_grid=True, **facts))
        sites.append(Site('embed', '', d, d, has_grid=True, **facts))
        for i, (path, block) in enumerate(self.blocks(backbone)):
            sites += self.sites_of_block(path, block, d, block=i, **facts)
        return sites + self.end_sites(backbone, facts)

    def end_sites(self, backbone: nn.Module, facts: dict[str, Any]) -> list[Site]:
        """The sites behind the last block."""
        d, depth, sites = backbone.embed_dim, len(backbone.blocks), []
        facts = {**facts, 'pooled': str(backbone.global_pool).startswith('avg')}
        grid = {**facts, 'has_grid': True}
        vector = {**facts, 'has_grid': not backbone.global_pool}
        if not isinstance(backbone.norm, nn.Identity):
            sites.append(Site('out.norm', '', d, d, index=depth - 1, **grid))
        sites.append(Site('out', '', d, d, index=depth - 1, **grid))
        if not isinstance(backbone.fc_norm, nn.Identity):
            sites.append(Site('out.norm', '', d, d, index=depth, **vector))
        # The width of what a classifier inside of the model reads is not free.
        if isinstance(backbone.head, nn.Identity) and backbone.global_pool:
            sites.append(Site('feature', '', d, d, index=depth - 1, **vector))
        return sites

    def why_absent(self, backbone: nn.Module, kind: str) -> str | None:
        if kind.startswith('embed.') and not isinstance(
            backbone.patch_embed, PatchEmbed
        ):
            return 'patches leave a convolutional stem, and no one projection sees them'
        if kind == 'feature' and not isinstance(backbone.head, nn.Identity):
            return 'the model holds a classifier; build it with num_classes=0'
        if kind == 'feature' and not backbone.global_pool:
            return 'the model does not pool its tokens; build it with a global_pool'
        return super().why_absent(backbone, kind)

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        depth = len(backbone.blocks)
        modules = {
            f'out_norm_{depth - 1}': backbone.norm,
            f'out_norm_{depth}': backbone.fc_norm,
        }
        if isinstance(backbone.patch_embed, PatchEmbed):
            modules['embed_proj'] = backbone.patch_embed.proj
            modules['embed_norm'] = backbone.patch_embed.norm
        return modules
