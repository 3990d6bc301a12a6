"""Sites of mmpretrain's DistilledVisionTransformer (DeiT with distillation)."""

from __future__ import annotations

from mmpretrain.models.backbones.deit import DistilledVisionTransformer
from torch import Tensor, nn

from mmpetl.backbones.mmpretrain_vit import MMPretrainViTMap
from mmpetl.backbones.shared.mm_plain import with_tokens
from mmpetl.backbones.shared.mmpretrain_plain import MMPretrainPlain
from mmpetl.core import Context
from mmpetl.registry import BACKBONES


class PETLDistilledVisionTransformer(MMPretrainPlain, DistilledVisionTransformer):
    """A DistilledVisionTransformer that runs sites; ``pre_norm`` is never read."""

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        x = with_tokens([self.cls_token, self.dist_token], x, ctx)
        return self.with_positions(x, ctx)


@BACKBONES.register_module()
class MMPretrainDistilledViT(MMPretrainViTMap):
    """``mmpretrain.DistilledVisionTransformer``.

    As ``out_type='cls_token'`` two vectors leave, for a head that averages what it
    makes of each; a method that changes the one vector of a trunk has no place there.
    """

    host = DistilledVisionTransformer
    swapped = PETLDistilledVisionTransformer
    tokens = ('cls_token', 'dist_token')
    unused = ('pre_norm.*',)
    absent = {'feature': "only out_type='avg_featmap' gives one vector"}

    def example(self) -> nn.Module:
        return DistilledVisionTransformer(arch='deit-base')

    def gives_vectors(self, backbone: nn.Module) -> bool:
        return self.pools(backbone)
