"""Sites of timm's VisionTransformerDistilled: DeiT with a distillation token."""

from __future__ import annotations

from typing import Any

from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_plain import TimmPlain
from mmpetl.backbones.timm_vit import TimmViT
from mmpetl.core import Context, PETLError, Site
from mmpetl.registry import BACKBONES


class PETLVisionTransformerDistilled(TimmPlain, VisionTransformerDistilled):
    """A timm VisionTransformerDistilled that runs sites."""

    def head_of(
        self, x: Tensor, ctx: Context, pre_logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        return VisionTransformerDistilled.forward_head(self, x, pre_logits)


@BACKBONES.register_module()
class TimmDeiTDistilled(TimmViT):
    """``timm.models.deit.VisionTransformerDistilled``."""

    host = VisionTransformerDistilled
    swapped = PETLVisionTransformerDistilled
    head = ('head', 'head_dist')
    tokens = ('cls_token', 'dist_token')
    absent = {'feature': 'two vectors leave, of the class and the distillation token'}

    def example(self) -> nn.Module:
        return VisionTransformerDistilled(num_classes=0)

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        if not isinstance(backbone.fc_norm, nn.Identity):
            raise PETLError(
                'the forward pass of a timm.VisionTransformerDistilled goes by its '
                'fc_norm; build the model with fc_norm=False'
            )

    def end_sites(self, backbone: nn.Module, facts: dict[str, Any]) -> list[Site]:
        sites = super().end_sites(backbone, facts)
        return [site for site in sites if site.kind != 'feature']

    def why_absent(self, backbone: nn.Module, kind: str) -> str | None:
        return self.absent.get(kind) or super().why_absent(backbone, kind)
