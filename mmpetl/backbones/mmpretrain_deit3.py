"""Sites of mmpretrain's DeiT3."""

from __future__ import annotations

from mmpretrain.models.backbones.deit3 import (
    DeiT3,
    DeiT3FFN,
    DeiT3TransformerEncoderLayer,
)
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from mmpetl.backbones.mmpretrain_vit import MMPretrainViTMap
from mmpetl.backbones.shared.mm_plain import with_tokens
from mmpetl.backbones.shared.mmpretrain_plain import MMPretrainBlock, MMPretrainPlain
from mmpetl.core import Affine, Context, PETLError
from mmpetl.registry import BACKBONES


class PETLDeiT3TransformerEncoderLayer(MMPretrainBlock, DeiT3TransformerEncoderLayer):
    """An encoder layer that runs sites.

    Upstream ``ln1`` stands in front of both sub-layers and ``ln2`` is never read. The
    weights were made with that, so it stays.
    """

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.ln1, self.ln1

    def affine(self, name: str, kind: str) -> Affine | None:
        found = super().affine(name, kind)
        if found is not None and kind in ('norm1', 'norm2'):
            found.tied = 'ln1 serves attention and feed-forward network at once'
        return found


class PETLDeiT3(MMPretrainPlain, DeiT3):
    """A DeiT3 that runs sites; its class token has no position."""

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.with_positions(x, ctx)
        return x if self.cls_token is None else with_tokens([self.cls_token], x, ctx)


@BACKBONES.register_module()
class MMPretrainDeiT3(MMPretrainViTMap):
    """``mmpretrain.DeiT3``."""

    host = DeiT3
    host_block = DeiT3TransformerEncoderLayer
    swapped = PETLDeiT3
    swapped_block = PETLDeiT3TransformerEncoderLayer
    parts = {'attn': (MultiheadAttention,), 'ffn': (DeiT3FFN,)}
    unused = ('layers.*.ln2.*',)

    def example(self) -> nn.Module:
        return DeiT3(arch='base')

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        if self.pools(backbone):
            raise PETLError(
                "mmpretrain.DeiT3 with out_type='avg_featmap' reads a norm ln2 that it "
                "does not have, and cannot run; choose 'cls_token', 'featmap' or 'raw'"
            )
