"""Models of timm as backbones of detectors and segmentors: maps from several depths."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmpetl.core import PETLError, SiteMap
from mmpetl.models.timm_backbone import build_timm
from mmpetl.registry import BACKBONES, MODELS


@MODELS.register_module()
class TimmMaps(BaseModule):
    """A model of timm that hands out the maps that it makes on its way.

    Unlike timm's ``features_only=True`` it stays the model that it was, so that sites
    and keys are those of the classifier. A plain transformer hands out the map behind
    its last norm; a pyramid those in front of each change of resolution, as they are.

    Args:
        model_name: Name in timm.
        out_indices: Places in the model's ``feature_info``; None takes the last of each
            resolution.
        pretrained: Whether the weights come with the model, by timm's own way.
        model_args: Further arguments of the model: ``dict(img_size=512)``.
        init_cfg: As in every module of MMEngine.

    Raises:
        PETLError: As of :func:`mmpetl.models.timm_backbone.build_timm`; or the model
            makes no maps, or none at such a place.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] | None = None,
        pretrained: bool = False,
        model_args: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.timm_model = build_timm(model_name, pretrained, model_args or {})
        self._is_init = pretrained
        self.scales = scales = _scales(model_name, self.timm_model)
        if out_indices is None:
            out_indices = sorted({scale: i for i, scale in enumerate(scales)}.values())
        out_indices = [int(i) for i in out_indices]
        if not out_indices or not all(0 <= i < len(scales) for i in out_indices):
            raise PETLError(
                f'{model_name} makes {len(scales)} maps, asked for are {out_indices}'
            )
        self.out_indices = out_indices
        # Pyramids norm their last map at most, and some refuse to.
        self.normed = len(set(scales)) == 1

    def init_weights(self) -> None:
        """Nothing: timm has drawn or loaded the values when it built the model."""
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, C, H, W) of pictures (B, 3, H, W), the finest first."""
        return tuple(
            self.timm_model.forward_intermediates(
                x,
                indices=self.out_indices,
                norm=self.normed,
                output_fmt='NCHW',
                intermediates_only=True,
            )
        )


def _scales(name: str, model: nn.Module) -> list[int]:
    """Pixels of the input that a pixel of each map stands for."""
    info = getattr(model, 'feature_info', None)
    info = getattr(info, 'info', info)
    makes = getattr(model, 'forward_intermediates', None)
    if not info or makes is None or 'norm' not in inspect.signature(makes).parameters:
        raise PETLError(
            f'{name} hands out no maps (timm has no forward_intermediates of it); '
            'detectors and segmentors need another model'
        )
    return [entry['reduction'] for entry in info]


@BACKBONES.register_module()
class MMPetlTimmMaps(SiteMap):
    """``mmpetl.TimmMaps``; the sites are those of the model inside of it."""

    host = TimmMaps

    def core(self, backbone: nn.Module) -> nn.Module:
        return backbone.timm_model
