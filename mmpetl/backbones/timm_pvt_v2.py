"""Sites of timm's PyramidVisionTransformerV2, with keys of strides or of a pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.models._features import feature_take_indices
from timm.models.pvt_v2 import (
    Attention,
    Block,
    MlpWithDepthwiseConv,
    OverlapPatchEmbed,
    PyramidVisionTransformerV2,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_model import TimmModel
from mmpetl.core import (
    FFN,
    Context,
    PETLError,
    PyramidBackboneHost,
    PyramidSiteMap,
    ReducedKeysHost,
    Site,
    Stack,
    Stage,
    on_maps,
)
from mmpetl.registry import BACKBONES


def stages_of(backbone: PyramidVisionTransformerV2) -> list[Stage]:
    """The stages; the first patch embedding stands outside of its stage."""
    found = []
    for i, stage in enumerate(backbone.stages):
        embed = backbone.patch_embed if i == 0 else stage.downsample
        blocks = list(enumerate(stage.blocks))
        path = f'stages.{i}.blocks'
        found.append(Stage(path, blocks, embed.proj, embed.norm, stage.norm))
    return found


class PETLBlock(ReducedKeysHost, Block):
    """A PVTv2 block that runs sites."""

    def key_reduction(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        attn = self.attn
        if attn.pool is not None:
            return lambda maps: attn.sr(attn.pool(maps)), self.normed_keys
        return None if attn.sr is None else (attn.sr, attn.norm)

    def normed_keys(self, x: Tensor) -> Tensor:
        """Norm and activation behind a pool."""
        return self.attn.act(self.attn.norm(x))

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': Stack(attn.q, attn.kv, sizes=(attn.dim,) * 3),
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'kv_source': self.kv_source(),
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self) -> FFN:
        mlp = self.mlp
        return FFN(mlp.fc1, self.between, mlp.fc2, mlp.drop)

    def between(self, x: Tensor, ctx: Context) -> Tensor:
        """The depth-wise convolution and what stands around it."""
        mlp = self.mlp
        return mlp.drop(mlp.act(on_maps(mlp.dwconv, mlp.relu(x), ctx)))

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return (self.drop_path1 if branch == 1 else self.drop_path2)(x)


class PETLPyramidVisionTransformerV2(
    TimmModel, PyramidBackboneHost, PyramidVisionTransformerV2
):
    """A PVTv2 that runs sites; the last stage is its output."""

    def pyramid(self) -> list[Stage]:
        for stage in self.stages:
            for block in stage.blocks:
                block.with_cp = stage.grad_checkpointing
        return stages_of(self)

    def leaves(self, index: int) -> bool:
        return index == len(self.stages) - 1

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        found, _ = self.stage_outputs(x)
        _, y, grid = found[-1]
        return self.maps(y, grid)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of several stages, each behind its norm, as upstream gives them.

        What a method does at ``out`` it does to the output of the last stage.
        """
        if output_fmt != 'NCHW':
            raise PETLError(f'output_fmt is NCHW, got {output_fmt!r}')
        taken, deepest = feature_take_indices(len(self.stages), indices)
        until = deepest if stop_early else len(self.stages) - 1
        outputs, _ = self.stage_outputs(x, {*taken, until}, until)
        maps = {i: self.maps(y, grid) for i, y, grid in outputs}
        found = [maps[i] for i in sorted(taken)]
        return found if intermediates_only else (maps[until], found)


@BACKBONES.register_module()
class TimmPVTv2(PyramidSiteMap):
    """``timm.models.pvt_v2.PyramidVisionTransformerV2``."""

    host = PyramidVisionTransformerV2
    host_block = Block
    head = ('head',)
    head_dropout = ('head_drop',)
    swapped = PETLPyramidVisionTransformerV2
    swapped_block = PETLBlock
    parts = {'attn': (Attention,), 'mlp': (MlpWithDepthwiseConv,)}
    outer_parts = {'patch_embed': (OverlapPatchEmbed,)}

    def example(self) -> nn.Module:
        return PyramidVisionTransformerV2(depths=(3, 6, 40, 3), num_classes=0)

    def pyramid(self, backbone: nn.Module) -> list[Stage]:
        return stages_of(backbone)

    def leaving(self, backbone: nn.Module) -> set[int]:
        return {len(backbone.stages) - 1}

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        return {
            'mlp_dims': block.mlp.fc1.out_features,
            'num_heads': block.attn.num_heads,
            'reduced_keys': True,
        }

    def sites(self, backbone: nn.Module) -> list[Site]:
        pooled = bool(backbone.global_pool)
        return [
            replace(site, pooled=pooled) if site.kind == 'out' else site
            for site in super().sites(backbone)
        ]
