"""The trunk of a detector or a segmentor: what maps it makes, and of what input.

``timm/NAME`` is a model of timm, whose maps :class:`mmpetl.models.TimmMaps` hands out;
anything else is a config of a detector or a segmentor, whose backbone is taken. Which
maps there are is found by a pass without numbers.

The input is a square: pictures are made to fit into it with their form kept, and filled
up, so that trunks with a table of positions or with windows see the one size that they
are built for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpetl.apis.building import without_memory
from mmpetl.config.load import load_config
from mmpetl.core import PETLError
from mmpetl.models.petl_backbone import build_foreign
from mmpetl.models.simple_pyramid import pyramid_widths
from mmpetl.own.trunks import (
    PRETRAINED,
    TIMM,
    AnyTrunk,
    check_size,
    config_backbone,
    is_config,
    is_timm,
    no_backbone,
    statistics_of,
    timm_facts,
    weights_file,
)

LEAST_SIDE = 512
"""Side of the input in px, where the model's own is not larger: things are small."""
STEP = 32
"""Sides are multiples of it, or of twice the patch of a plain transformer."""


@dataclass(frozen=True)
class Map:
    """A map that a trunk makes.

    Attributes:
        width: Its channels.
        stride: Pixels of the input that a place in it stands for, by side.
    """

    width: int
    stride: int


@dataclass(frozen=True)
class MapTrunk(AnyTrunk):
    """A trunk of a detector or segmentor, its maps and its preprocessing.

    Attributes:
        maps: That it makes, the finest first.
    """

    maps: tuple[Map, ...]

    @property
    def side(self) -> int:
        """Side of the input, px."""
        return self.size[0]

    def levels(self, finest: int) -> tuple[list[int], list[Map], list[float]]:
        """Levels that a head reads.

        A trunk of one resolution gets a simple pyramid behind it.

        Args:
            finest: Least stride of a level where the trunk makes several.

        Returns:
            Places of its maps, the levels, and the scales of the pyramid: none where
            the trunk makes levels itself.

        Raises:
            PETLError: Too few maps are coarse enough, or a pyramid cannot be built.
        """
        if len({one.stride for one in self.maps}) > 1:
            taken = [i for i, one in enumerate(self.maps) if one.stride >= finest]
            if len(taken) < 2:
                raise PETLError(
                    f'{self.name} makes maps of strides '
                    f'{", ".join(str(one.stride) for one in self.maps)}; two are '
                    f'needed of {finest} or more'
                )
            return taken, [self.maps[i] for i in taken], []
        last = self.maps[-1]
        scales = [4.0, 2.0, 1.0, 0.5] if finest < 8 else [2.0, 1.0, 0.5]
        while int(max(scales)) > max(1, last.stride // 4):
            scales = scales[1:]
        widths = pyramid_widths(last.width, scales)
        levels = [
            Map(width, int(last.stride / scale))
            for width, scale in zip(widths, scales, strict=True)
        ]
        return [len(self.maps) - 1], levels, scales


def map_trunk_of(
    name: str, weights: str = PRETRAINED, size: int | None = None
) -> MapTrunk:
    """The trunk of a name.

    Args:
        name: ``timm/NAME``, or a config of a detector or a segmentor.
        weights: As of :func:`mmpetl.own.trunk_of`.
        size: Side of the input in px; by default the model's own, 512 at least.

    Raises:
        PETLError: There is no such model, config or file; the model hands out no maps;
            the config is of something else, or names no weights; or the size is not
            one that the trunk takes.
    """
    file = weights_file(weights)
    check_size(size)
    if is_timm(name):
        return _of_timm(name[len(TIMM) :], weights, file, size)
    if is_config(name):
        return _of_config(name, weights, file, size)
    raise no_backbone(
        name, 'a detector or segmentor (configs/mini/voc.py, mmdet::...py, ...)'
    )


def _of_timm(name: str, weights: str, file: str | None, size: int | None) -> MapTrunk:
    facts = timm_facts(name, weights)
    backbone: dict[str, Any] = {
        'type': 'mmpetl.TimmMaps',
        'model_name': name,
        'pretrained': weights == PRETRAINED,
    }
    step = _step(name, backbone)
    side = size or max(LEAST_SIDE, *facts.data['input_size'][1:])
    if size is None:
        side = -(-side // step) * step
    backbone['model_args'] = {'img_size': side} if facts.fixed else {}
    mean, std = facts.statistics
    return MapTrunk(
        name=f'{TIMM}{name}',
        backbone=backbone,
        checkpoint=file,
        weights=Path(file).name if file else weights,
        maps=_maps(f'{TIMM}{name}', backbone, side, step),
        mean=mean,
        std=std,
        rgb=True,
        size=(side, side),
        interpolation=facts.interpolation,
    )


def _step(name: str, backbone: Mapping[str, Any]) -> int:
    """What the side is a multiple of: the coarsest level has whole places."""
    with without_memory(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        module = build_foreign({**backbone, 'pretrained': False})
    return 2 * module.scales[-1] if module.normed else max(STEP, *module.scales)


def _of_config(name: str, weights: str, file: str | None, size: int | None) -> MapTrunk:
    config = load_config(name)
    model = config.get('model') or {}
    if config.get('default_scope') not in ('mmdet', 'mmseg') or (
        not isinstance(model.get('backbone'), Mapping)
    ):
        raise PETLError(
            f'{name} is no config of a detector or a segmentor, whose backbone makes '
            'maps; name one of mmdet or mmseg, or timm/NAME'
        )
    backbone, checkpoint = config_backbone(name, config, weights, file)
    stats = statistics_of(config)
    if not stats:
        raise PETLError(f'{name} does not say with what mean and std its input is')
    side = size or LEAST_SIDE
    return MapTrunk(
        name=name,
        backbone=backbone,
        checkpoint=checkpoint,
        weights=Path(checkpoint).name if checkpoint else weights,
        maps=_maps(name, backbone, side, STEP),
        **stats,
        size=(side, side),
        interpolation='bilinear',
    )


def _maps(
    name: str, backbone: Mapping[str, Any], side: int, step: int
) -> tuple[Map, ...]:
    """Maps that a trunk makes of a square, by a pass without numbers.

    Raises:
        PETLError: It does not take that size, or makes no maps of it.
    """
    if side % step:
        raise PETLError(
            f'{name} takes sides that are multiples of {step} here, got {side}; '
            f'{max(1, round(side / step)) * step} is near'
        )
    plain = {k: v for k, v in backbone.items() if k not in ('init_cfg', 'pretrained')}
    with without_memory(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the run itself says them
        trunk = build_foreign(plain)
        trunk.eval()  # which gives nothing back in some of upstream
        try:
            with torch.no_grad():
                made = trunk(torch.zeros(1, 3, side, side, device='meta'))
        except PETLError:
            raise
        except Exception as error:  # trunks raise what they like
            said = ' '.join(str(error).split())[:200]
            raise PETLError(f'{name} cannot read {side} x {side} px: {said}') from error
    made = made if isinstance(made, list | tuple) else [made]
    if not made or not all(isinstance(y, Tensor) and y.ndim == 4 for y in made):
        raise PETLError(f'{name} hands out no maps, which boxes and masks need')
    for y in made:
        if y.shape[2] != y.shape[3] or side % y.shape[2]:
            raise PETLError(
                f'{name} makes a map of {y.shape[3]} x {y.shape[2]} of {side} x {side} '
                'px, whose places stand for no whole number of pixels; take another '
                'trunk or size'
            )
    maps = tuple(Map(y.shape[1], side // y.shape[2]) for y in made)
    if sorted(one.stride for one in maps) != [one.stride for one in maps]:
        raise PETLError(f'the maps of {name} do not get coarser one by one')
    return maps
