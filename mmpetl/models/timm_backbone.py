"""Models of timm as backbones that hand out the vector in front of their classifier.

mmpretrain's ``TIMMBackbone`` takes a model's pooling away and hands out tokens or maps,
so that a class token, a mean or an attention pooling has to be built again around it.
Here the model keeps it, whatever it is.
"""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmpetl.core import PETLError, SiteMap, suggest
from mmpetl.registry import BACKBONES, MODELS


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """A model of timm without its classifier.

    Sites are those of the model inside, at ``timm_model``. The width of the vector is
    ``feature_dims``.

    Args:
        model_name: Name in timm, with or without a tag:
            ``'vit_base_patch14_dinov2.lvd142m'``.
        pretrained: Whether the weights come with the model, by timm's own way.
        model_args: Further arguments of the model: ``dict(img_size=224)``.
        init_cfg: As in every module of MMEngine.

    Raises:
        PETLError: timm has no such model, the model does not take an argument, or its
            weights cannot be fetched.
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool = False,
        model_args: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.timm_model = build_timm(model_name, pretrained, model_args or {})
        self._is_init = pretrained

    @property
    def feature_dims(self) -> int:
        """Width of the vector."""
        model = self.timm_model
        return int(getattr(model, 'head_hidden_size', None) or model.num_features)

    def init_weights(self) -> None:
        """Nothing: timm has drawn or loaded the values when it built the model."""
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """The vectors (B, feature_dims) of pictures (B, 3, H, W)."""
        return (self.timm_model(x),)


def build_timm(name: str, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    """A model of timm whose output is the vector in front of its classifier.

    Raises:
        PETLError: As of :class:`TimmBackbone`.
    """
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        raise PETLError(f'timm has no model {name!r}.{suggest(name, known)}')
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **args)
    except Exception as error:  # those of the hub are of many kinds
        said = ' '.join(str(error).split())[:200]
        if pretrained:
            raise PETLError(
                f'timm cannot give {name!r} its weights ({type(error).__name__}: '
                f'{said}); fetch them where there is a network, or name a file of them '
                '(--weights FILE of train-own, model.backbone.checkpoint of a config)'
            ) from error
        raise PETLError(f'timm cannot build {name!r} with {args}: {said}') from error


@BACKBONES.register_module()
class MMPetlTimmBackbone(SiteMap):
    """``mmpetl.TimmBackbone``; the sites are those of the model inside of it."""

    host = TimmBackbone

    def core(self, backbone: nn.Module) -> nn.Module:
        return backbone.timm_model


__all__ = ['TimmBackbone', 'build_timm']
