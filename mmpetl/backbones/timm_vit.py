"""Sites of timm's VisionTransformer, bare or inside of mmpretrain's TIMMBackbone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.layers import Attention, HybridEmbed, PatchEmbed
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_plain import (
    NETWORKS,
    TimmBlock,
    TimmPlain,
    TimmPlainMap,
)
from mmpetl.core import (
    FFN,
    BlockHost,
    Context,
    PETLError,
    Role,
    Rows,
    Site,
    block_sites,
)
from mmpetl.registry import BACKBONES


class PETLBlock(TimmBlock, Block):
    """A block that runs sites."""

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.drop_path1(self.ls1(x))
        return self.drop_path2(self.ls2(x))


class PETLResPostBlock(TimmBlock, ResPostBlock):
    """Norms behind the sub-layers."""

    post_norm = True

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path1(x) if branch == 1 else self.drop_path2(x)


class PETLParallelScalingBlock(BlockHost, ParallelScalingBlock):
    """Attention and feed-forward network side by side, on one norm and one shortcut.

    ``in_proj`` holds the rows of ``ffn.fc1``, then those of queries, keys and values.
    Of a fused ``out_proj`` the columns belong to ``attn.proj``, with the bias, and to
    ``ffn.fc2``.
    """

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.in_norm, self.in_norm

    def attention_parts(self) -> dict[str, Any]:
        hidden, width, *_ = self.in_split
        bias = self.in_proj.bias
        proj = self.attn_out_proj
        if proj is None:
            proj = Rows(self.out_proj.weight[:, :width], self.out_proj.bias)
        return {
            'num_heads': self.num_heads,
            'qkv': Rows(
                self.in_proj.weight[hidden:], None if bias is None else bias[hidden:]
            ),
            'proj': proj,
            'dropout': self.attn_drop.p if self.attn_drop.training else 0.0,
            'prepare': lambda q, k, v, _: (self.q_norm(q), self.k_norm(k), v),
        }

    def ffn_parts(self) -> FFN:
        hidden, width, *_ = self.in_split
        bias = self.mlp_bias
        if bias is None:
            bias = self.in_proj.bias[:hidden]
        fc2 = self.mlp_out_proj
        if fc2 is None:
            fc2 = Rows(self.out_proj.weight[:, width:])
        return FFN(
            Rows(self.in_proj.weight[:hidden], bias),
            lambda x, _: self.mlp_drop(self.mlp_act(x)),
            fc2,
        )

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        h = self.through('norm1', self.in_norm, x, ctx)
        a = self.through('attn', lambda h: self.attention(h, ctx), h, ctx)
        f = self.through('ffn', lambda h: self.ffn_network(h, ctx), h, ctx)
        return x + self.drop_path(self.ls(a + f))


class PETLVisionTransformer(TimmPlain, VisionTransformer):
    """A timm VisionTransformer that runs sites."""


@BACKBONES.register_module()
class TimmViT(TimmPlainMap):
    """``timm.models.vision_transformer.VisionTransformer``.

    With ResPostBlock or ParallelScalingBlock too, gated networks, and convolutional
    stems, of which no site is given.
    """

    host = VisionTransformer
    host_block = Block
    swapped = PETLVisionTransformer
    blocks_served = {
        Block: PETLBlock,
        ResPostBlock: PETLResPostBlock,
        ParallelScalingBlock: PETLParallelScalingBlock,
    }
    embeds = (PatchEmbed, HybridEmbed)
    biases = ('bias', 'mlp_bias')
    scales = ('gamma',)

    def example(self) -> nn.Module:
        return VisionTransformer(num_classes=0)

    def check(self, backbone: nn.Module) -> None:
        for path, block in self.blocks(backbone):
            if type(block).__name__ in LAYERS:
                raise PETLError(
                    f'{path} is a timm.{type(block).__name__}, whose algebra has no '
                    f'sites; LoRA and other methods of single layers take it by name: '
                    f'layers={LAYERS[type(block).__name__]!r}'
                )
            if isinstance(getattr(block, 'attn', None), nn.Module):
                attn = type(block.attn).__name__
                if attn == 'DiffAttention':
                    raise PETLError(
                        f'{path}.attn is a timm.{attn}, which subtracts two softmaxes '
                        'and has no sites; LoRA and other methods of single layers '
                        "take it by name: layers='blocks.*.attn.qkv'"
                    )
        super().check(backbone)
        for path, block in self.blocks(backbone):
            if not isinstance(block, ParallelScalingBlock):
                self.check_class(f'{path}.attn', block.attn, (Attention,))
                self.check_class(f'{path}.mlp', block.mlp, NETWORKS)

    def sites_of_block(
        self, path: str, module: nn.Module, dims: int, **facts: Any
    ) -> list[Site]:
        if not isinstance(module, ParallelScalingBlock):
            return super().sites_of_block(path, module, dims, **facts)
        hidden, width, *_ = module.in_split
        return block_sites(
            path,
            dims,
            hidden,
            attn_dims=width,
            without=ONE_SHORTCUT,
            num_heads=module.num_heads,
            **facts,
        )

    def roles(self, backbone: nn.Module) -> list[Role]:
        # Norms per head lie directly in blocks whose sub-layers are no modules.
        return [
            replace(role, kind='inner_norm')
            if role.kind == 'norm' and role.name.split('.')[-2] in ('q_norm', 'k_norm')
            else role
            for role in super().roles(backbone)
        ]

    def why_absent(self, backbone: nn.Module, kind: str) -> str | None:
        parallel = isinstance(backbone.blocks[0], ParallelScalingBlock)
        if kind in ONE_SHORTCUT and parallel:
            return 'attention and feed-forward network share one norm and one shortcut'
        return super().why_absent(backbone, kind)


ONE_SHORTCUT = (
    'attn.branch',
    'attn.skip',
    'attn.sum',
    'norm2',
    'ffn.branch',
    'ffn.skip',
    'ffn.sum',
)
"""What blocks with sub-layers side by side have no place for."""

LAYERS = {
    'ParallelThingsBlock': 'blocks.*.attns.*.attn.qkv',
    'DiffParallelScalingBlock': 'blocks.*.in_proj',
}
"""Blocks of an algebra without sites, and layers to name instead."""
