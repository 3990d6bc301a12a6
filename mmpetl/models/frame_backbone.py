"""Backbones of images in models of clips: each frame is an image of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmpetl.core import PETLError, SiteMap, site_map_of
from mmpetl.registry import BACKBONES, MODELS


@MODELS.register_module()
class FrameBackbone(BaseModule):
    """A backbone of images that takes clips and averages its outputs over the frames.

    The batch of the backbone counts clips times frames, the frames of a clip one behind
    the other, and deltas learn how many there are from their context. The backbone
    itself is at ``model``; sites are those that it has for images.

    Args:
        backbone: Config of a backbone of images, its scope in front of its type
            (``dict(type='mmpretrain.VisionTransformer', out_type='cls_token')``), or
            the backbone.
        num_frames: Frames of a clip, T >= 2.
        init_cfg: As in every module of MMEngine.

    Raises:
        PETLError: A clip would have fewer than two frames, or the backbone's config
            names its weights itself.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any] | nn.Module,
        num_frames: int,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_frames < 2:
            raise PETLError(
                f'FrameBackbone needs num_frames of at least 2, got {num_frames}; an '
                'image needs no wrapper around its backbone'
            )
        if isinstance(backbone, Mapping):
            if backbone.get('init_cfg'):
                raise PETLError(
                    'drop init_cfg from the backbone of FrameBackbone, and name the '
                    'file as `checkpoint` of mmpetl.PETLBackbone'
                )
            backbone = MODELS.build(dict(backbone))
        self.model = backbone
        self.num_frames = num_frames
        self._is_init = getattr(backbone, '_is_init', False)
        _core_of(backbone).clip_frames = num_frames

    def forward(self, x: Tensor) -> Any:
        """What the backbone gives, averaged over the frames of each clip.

        Args:
            x: (B, 3, T, H, W).

        Returns:
            Of vectors (B * T, C) their means (B, C), of maps (B * T, C, H', W') means
            (B, C, H', W'); one output alone, or a tuple of several.

        Raises:
            PETLError: The clips have another number of frames.
        """
        if x.ndim != 5 or x.shape[2] != self.num_frames:
            raise PETLError(
                f'FrameBackbone takes clips (B, 3, {self.num_frames}, H, W), got '
                f'{tuple(x.shape)}; set num_frames, and clip_len of the pipelines, to '
                'one number'
            )
        outs = self.model(x.transpose(1, 2).flatten(0, 1))
        return _each(outs, lambda y: y.unflatten(0, (-1, self.num_frames)).mean(1))


def _core_of(backbone: nn.Module) -> nn.Module:
    """The module that starts the context of a pass."""
    site_map = site_map_of(backbone)
    inner = backbone if site_map is None else site_map.core(backbone)
    return backbone if inner is backbone else _core_of(inner)


def _each(outs: Any, run: Callable[[Tensor], Tensor]) -> Any:
    """``run`` on each tensor; the only one of a sequence leaves alone."""
    if isinstance(outs, Tensor):
        return run(outs)
    if not isinstance(outs, list | tuple):
        raise PETLError(
            f'FrameBackbone averages tensors, and its backbone gives a '
            f'{type(outs).__name__}; take a backbone of an OpenMMLab package, '
            'mmpretrain.TIMMBackbone or mmpetl.HFBackbone'
        )
    found = tuple(_each(y, run) for y in outs)
    return found[0] if len(found) == 1 else found


@BACKBONES.register_module()
class MMPetlFrameBackbone(SiteMap):
    """``mmpetl.FrameBackbone``; the sites are those of the backbone inside of it."""

    host = FrameBackbone

    def core(self, backbone: nn.Module) -> nn.Module:
        return backbone.model


__all__ = ['FrameBackbone']
