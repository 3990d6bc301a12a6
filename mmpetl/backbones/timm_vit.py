"""Sites of timm's VisionTransformer, bare or inside of mmpretrain's TIMMBackbone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import Attention, Mlp, PatchEmbed, to_2tuple
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mmpetl.core import (
    BackboneHost,
    BlockHost,
    Context,
    PETLError,
    Site,
    SiteMap,
    block_sites,
    injection_of,
    without_extra,
)
from mmpetl.registry import BACKBONES


class PETLBlock(BlockHost, Block):
    """A block that runs sites."""

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'prepare': self.norm_heads,
        }

    def norm_heads(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Norms of queries and keys per head, identities in most models."""
        return self.attn.q_norm(q), self.attn.k_norm(k), v

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self):
        mlp = self.mlp
        return mlp.fc1, lambda x: mlp.norm(mlp.drop1(mlp.act(x))), mlp.fc2, mlp.drop2

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.drop_path1(self.ls1(x))
        return self.drop_path2(self.ls2(x))


class PETLVisionTransformer(BackboneHost, VisionTransformer):
    """A timm VisionTransformer that runs sites."""

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
        ctx = Context(tuple(self.patch_embed.grid_size), self.num_prefix_tokens)
        return self.head_of(x, ctx, pre_logits)

    @property
    def last(self) -> int:
        """Index of the last block, which is that of the output behind it."""
        return len(self.blocks) - 1

    def tokens_of(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Context]:
        """The normed tokens, and the facts of the pass that made them."""
        x, ctx = self.embedded(x, attn_mask, is_causal)
        for block in self.blocks:
            x = self.run_block(block, x, ctx)
        return self.emit(x, self.norm, ctx, self.last)[1], ctx

    def embedded(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Context]:
        """What enters the first block, and the facts of the pass."""
        if attn_mask is not None or is_causal:
            raise PETLError('a backbone with sites takes no attn_mask and no is_causal')
        embed = self.patch_embed
        x, ctx = self.embed_patches(embed.proj, embed.norm, self.fitted(x))
        # timm keeps the grid where the input size may vary; deltas see (B, N, C).
        if not embed.flatten:
            x = x.unflatten(1, ctx.grid)
        x = self.norm_pre(self._pos_embed(x))
        ctx.num_prefix = self.num_prefix_tokens
        return self.after('embed', x, x, ctx), ctx

    def fitted(self, x: Tensor) -> Tensor:
        """Images of a size that the patch embedding takes, padded where it pads."""
        embed = self.patch_embed
        size = tuple(x.shape[-2:])
        pads = [-n % p for n, p in zip(size, embed.patch_size, strict=True)]
        fixed = embed.img_size if embed.strict_img_size else None
        if fixed is not None and size != tuple(fixed):
            raise PETLError(
                f'the model takes images of {tuple(fixed)}, got {size}; call '
                'set_input_size, or build it with dynamic_img_size=True'
            )
        if embed.dynamic_img_pad:
            return F.pad(x, (0, pads[1], 0, pads[0])) if any(pads) else x
        if embed.img_size is not None and fixed is None and any(pads):
            raise PETLError(
                f'patches of {tuple(embed.patch_size)} do not divide images of {size}; '
                'resize them, or build the model with dynamic_img_pad=True'
            )
        return x

    def run_block(self, block: nn.Module, x: Tensor, ctx: Context) -> Tensor:
        """One block, (B, num_prefix + N, C), with upstream's switch for memory."""
        block.with_cp = self.grad_checkpointing
        return block(x, ctx)

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
        for i, block in enumerate(self.blocks):
            if stop_early and i > deepest:
                break
            x = self.run_block(block, x, ctx)
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
        """Resize the position table, which is part of the base from then on."""
        if _differs(patch_size, self.patch_embed.patch_size):
            raise PETLError(
                'set_input_size changes the patch projection, which has sites; change '
                'patch_size before inject'
            )
        slots = injection_of(self)[1].slots
        takers = [name for name, s in slots.items() if 'pos_embed' in s.selected]
        if takers and _differs(img_size, self.patch_embed.img_size):
            raise PETLError(
                f'slot {takers[0]!r} trains pos_embed, which set_input_size resizes; '
                'call it before inject'
            )
        self.convert_base(partial(super().set_input_size, img_size))

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None
    ) -> None:
        """Another head, which trains; the pooling stays, as the sites follow it."""
        if global_pool not in (None, self.global_pool):
            raise PETLError(
                f'reset_classifier would pool by {global_pool!r} where the sites stand '
                f'for {self.global_pool!r}; change global_pool before inject'
            )
        super().reset_classifier(num_classes)
        _, record = injection_of(self)
        fresh = {n for n, _ in self.named_parameters() if record.site_map.in_head(n)}
        record.base |= fresh
        record.head |= fresh
        record.trainable_before |= fresh

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Refused: sites, slots and the frozen base reach over all blocks."""
        raise PETLError(
            'prune_intermediate_layers would cut off blocks that have sites; prune '
            'before inject (features_only=True of timm.create_model does)'
        )


def _differs(
    asked: int | tuple[int, int] | None, there: tuple[int, int] | None
) -> bool:
    """Whether a size is asked for that is not there."""
    return asked is not None and to_2tuple(asked) != there


@BACKBONES.register_module()
class TimmViT(SiteMap):
    """``timm.models.vision_transformer.VisionTransformer``."""

    host = VisionTransformer
    host_block = Block
    head = ('head',)
    swapped = PETLVisionTransformer
    swapped_block = PETLBlock
    parts = {'attn': (Attention,), 'mlp': (Mlp,)}
    outer_parts = {'patch_embed': (PatchEmbed,), 'patch_embed.proj': (nn.Conv2d,)}
    tokens = ('cls_token', 'reg_token')
    scales = ('gamma',)

    def example(self) -> nn.Module:
        return VisionTransformer(num_classes=0)

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        if not isinstance(backbone.patch_drop, nn.Identity):
            raise PETLError(
                'timm dropped patches (patch_drop_rate > 0) leave no grid; '
                'build the model with patch_drop_rate=0'
            )
        for path, block in self.blocks(backbone):
            attn = block.attn
            plain = getattr(attn, 'gate', None) is None
            plain &= isinstance(getattr(attn, 'norm', nn.Identity()), nn.Identity)
            if not plain:
                raise PETLError(f'{path}.attn is gated or scale-normed; no sites yet')

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.blocks):
            yield f'blocks.{i}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        d = backbone.embed_dim
        projection = backbone.patch_embed.proj
        patch = projection.in_channels * math.prod(projection.kernel_size)
        depth = len(backbone.blocks)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        sites = [Site('embed.proj', '', patch, d, has_grid=True, **facts)]
        if not isinstance(backbone.patch_embed.norm, nn.Identity):
            sites.append(Site('embed.norm', '', d, d, has_grid=True, **facts))
        sites.append(Site('embed', '', d, d, has_grid=True, **facts))
        for i, (path, block) in enumerate(self.blocks(backbone)):
            heads = block.attn.num_heads
            mlp = block.mlp.fc1.out_features
            sites += block_sites(path, d, mlp, block=i, num_heads=heads, **facts)
        facts['pooled'] = str(backbone.global_pool).startswith('avg')
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

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        depth = len(backbone.blocks)
        return {
            'embed_proj': backbone.patch_embed.proj,
            'embed_norm': backbone.patch_embed.norm,
            f'out_norm_{depth - 1}': backbone.norm,
            f'out_norm_{depth}': backbone.fc_norm,
        }
