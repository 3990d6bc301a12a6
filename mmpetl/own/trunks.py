"""The trunk that a name means, and what its pictures go through.

``timm/NAME`` is a model of timm; what its pictures go through is what timm's own data
config says: size, mean, standard deviation, interpolation, crop. Anything else is a
config of an image classifier, whose backbone, neck and test pipeline are taken:
``mmpetl::mini/digits.py``, ``mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmpetl.config.load import load_config
from mmpetl.config.nodes import (
    BUILDER,
    statistics_node,
    test_pipeline,
    turns_channels,
)
from mmpetl.core import PETLError, suggest
from mmpetl.models.petl_backbone import named_weights

TIMM = 'timm/'
PRETRAINED, RANDOM = 'pretrained', 'random'
"""What weights may be beside a file: those that the model comes with, or none."""

Steps = list[dict[str, Any]]

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'lanczos', 'hamming')
"""Of Pillow, as mmcv names them."""

_NO_GEOMETRY = ('Load', 'Pack', 'mmpetl.Load', 'Collect', 'ToTensor')


@dataclass(frozen=True)
class AnyTrunk:
    """A trunk and what it wants of pictures.

    Attributes:
        name: As it was asked for.
        backbone: Config of the trunk.
        checkpoint: File of the base weights; None where they come with the model, or
            where there are none.
        weights: ``pretrained``, ``random``, or the file's name, for the page.
        mean: Of the channels in their order, in units of 0 to 255.
        std: Likewise.
        rgb: Whether that order is RGB; else it is BGR.
        size: Height and width of the input, px.
        interpolation: Of the resizing.
    """

    name: str
    backbone: dict[str, Any]
    checkpoint: str | None
    weights: str
    mean: list[float]
    std: list[float]
    rgb: bool
    size: tuple[int, int]
    interpolation: str


@dataclass(frozen=True)
class Trunk(AnyTrunk):
    """A trunk of a classifier and its preprocessing.

    Attributes:
        feature_dims: Width of the vector that the head reads.
        neck: Config of what stands between trunk and head, or None.
        test: Transforms of a test picture between loading and packing.
    """

    feature_dims: int
    neck: dict[str, Any] | None
    test: Steps


def trunk_of(name: str, weights: str = PRETRAINED, size: int | None = None) -> Trunk:
    """The trunk of a name.

    Args:
        name: ``timm/NAME``, or a config of an image classifier.
        weights: ``pretrained`` takes what the model or the config names, ``random``
            nothing, anything else is a file of base weights.
        size: Side of the input in px, where it is not to be the model's own.

    Raises:
        PETLError: There is no such model, config or file; the config is no image
            classifier's, or names no weights; or the model takes no other size.
    """
    file = weights_file(weights)
    check_size(size)
    if is_timm(name):
        return _of_timm(name[len(TIMM) :], weights, file, size)
    if is_config(name):
        return _of_config(name, weights, file, size)
    raise no_backbone(
        name, 'an image classifier (mmpetl::mini/digits.py, mmpretrain::...py)'
    )


def weights_file(weights: str) -> str | None:
    """The file that weights are; None where they are a word for others.

    Raises:
        PETLError: There is no such file.
    """
    if weights in (PRETRAINED, RANDOM):
        return None
    if '://' in weights:
        return weights
    # Whole, as the config of a run is read from other folders too.
    file = str(Path(weights).expanduser().resolve())
    if not Path(file).exists():
        raise PETLError(
            f'there is no file of weights {weights}; name one, or {PRETRAINED} or '
            f'{RANDOM}'
        )
    return file


def check_size(size: int | None) -> None:
    """Raise PETLError where a size of the input is none."""
    if size is not None and size < 1:
        raise PETLError(f'the size of the input is a number of pixels, got {size}')


def is_timm(name: str) -> bool:
    """Whether a name is meant for a model of timm."""
    return name.startswith((TIMM, 'timm:'))


def is_config(name: str) -> bool:
    """Whether a name is meant for a config."""
    return name.endswith('.py') or '::' in name


def no_backbone(name: str, configs: str) -> PETLError:
    """The error for a name that is no backbone; ``configs`` are those that serve."""
    return PETLError(
        f'{name!r} is no backbone: write timm/NAME, as in timm/vit_base_patch14_dinov2'
        f'{_near(name)}, or a config of {configs}'
    )


def _near(name: str) -> str:
    import timm

    hint = suggest(name, timm.list_models()).strip()
    return f' ({hint})'.replace("you mean '", "you mean 'timm/") if hint else ''


# ---- timm ----------------------------------------------------------------------------
@dataclass(frozen=True)
class TimmFacts:
    """What timm says of a model.

    Attributes:
        data: Its data config: size, mean, std, interpolation, crop.
        fixed: Whether it is built for one size of the input.
    """

    data: dict[str, Any]
    fixed: bool

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of RGB, in units of 0 to 255."""
        mean, std = (
            [round(255 * value, 6) for value in self.data[key]]
            for key in ('mean', 'std')
        )
        return mean, std

    @property
    def interpolation(self) -> str:
        """Of the resizing, as mmcv names it."""
        kind = self.data['interpolation']
        return kind if kind in INTERPOLATIONS else 'bilinear'


def timm_facts(name: str, weights: str) -> TimmFacts:
    """What timm says of a model of that name.

    Raises:
        PETLError: There is none, it does not read RGB, or it has no weights.
    """
    import timm
    from timm.data import resolve_data_config

    if not timm.is_model(name):
        raise PETLError(
            f'timm has no model {name!r}.{suggest(name, timm.list_models())}'
        )
    facts = timm.get_pretrained_cfg(name)
    if facts is None:
        raise PETLError(f'timm says nothing of what {name!r} wants of its pictures')
    data = resolve_data_config({}, pretrained_cfg=facts.to_dict())
    channels = data['input_size'][0]
    if channels != 3:
        raise PETLError(f'{name} reads {channels} channels, and pictures have 3')
    if weights == PRETRAINED and not (facts.has_weights or facts.hf_hub_id):
        raise PETLError(
            f'timm has no pre-trained weights of {name}; name a file of them, or '
            f'{RANDOM} for a trial'
        )
    return TimmFacts(data, bool(facts.fixed_input_size))


def _of_timm(name: str, weights: str, file: str | None, size: int | None) -> Trunk:
    from mmpetl.models.timm_backbone import TimmBackbone

    facts = timm_facts(name, weights)
    _, height, width = facts.data['input_size']
    args: dict[str, Any] = {}
    if size is not None:
        height = width = size
        if facts.fixed:
            args['img_size'] = size
    backbone = {
        'type': 'mmpetl.TimmBackbone',
        'model_name': name,
        'pretrained': weights == PRETRAINED,
        'model_args': args,
    }
    # Its width alone is asked for, so no weights are fetched.
    drawn = TimmBackbone(**{k: v for k, v in backbone.items() if k[0] in 'm'})
    mean, std = facts.statistics
    trunk = Trunk(
        name=f'{TIMM}{name}',
        backbone=backbone,
        checkpoint=file,
        weights=Path(file).name if file else weights,
        feature_dims=drawn.feature_dims,
        neck=None,
        mean=mean,
        std=std,
        rgb=True,
        size=(height, width),
        interpolation=facts.interpolation,
        test=[],
    )
    return replace(
        trunk, test=_crop(trunk, facts.data['crop_pct'], facts.data['crop_mode'])
    )


def _crop(trunk: Trunk, share: float, mode: str) -> Steps:
    """The test of timm: resize to ``size / share``, then the middle.

    ``center`` resizes the short side, ``squash`` both sides, ``border`` the long one
    and fills what is left.
    """
    height, width = trunk.size
    high, wide = int(height / share), int(width / share)
    how = {'backend': 'pillow', 'interpolation': trunk.interpolation}
    crop: dict[str, Any] = {'type': 'CenterCrop', 'crop_size': (height, width)}
    if mode == 'squash' or height != width:
        resize = {'type': 'Resize', 'scale': (wide, high), **how}
    elif mode == 'border':
        resize = {'type': 'ResizeEdge', 'scale': high, 'edge': 'long', **how}
        fill = {'pad_val': {'img': tuple(round(value) for value in trunk.mean)}}
        crop |= {'auto_pad': True, 'pad_cfg': fill}
    else:
        resize = {'type': 'ResizeEdge', 'scale': high, 'edge': 'short', **how}
    return [resize, crop]


# ---- configs of classifiers ----------------------------------------------------------
def _of_config(name: str, weights: str, file: str | None, size: int | None) -> Trunk:
    from mmpetl.benchmark.run_facts import resolution_of

    config = load_config(name)
    model = config.get('model') or {}
    width = (model.get('head') or {}).get('in_channels')
    if model.get('type') not in ('ImageClassifier', 'mmpretrain.ImageClassifier') or (
        not isinstance(width, int)
    ):
        raise PETLError(
            f'{name} is no config of an image classifier with one linear head; name '
            'one of mmpretrain, or timm/NAME'
        )
    if size is not None:
        raise PETLError(f'{name} says itself what size its input has; leave out {size}')
    backbone, checkpoint = config_backbone(name, config, weights, file)
    found = resolution_of(config)
    stats = statistics_of(config)
    if not found or not stats:
        raise PETLError(
            f'{name} does not say of what size or with what mean and std its input is'
        )
    steps = _geometry(test_pipeline(config))
    return Trunk(
        name=name,
        backbone=backbone,
        checkpoint=checkpoint,
        weights=Path(checkpoint).name if checkpoint else weights,
        feature_dims=width,
        neck=_plain(model.get('neck')),
        **stats,
        size=(found[0], found[1]),
        interpolation=_interpolation(steps),
        test=steps,
    )


def statistics_of(config: Any) -> dict[str, Any]:
    """``mean``, ``std`` and ``rgb`` of a trunk by a config; empty if it has none."""
    stats = statistics_node(config)
    if not stats.get('mean'):
        return {}
    return {
        'mean': list(stats['mean']),
        'std': list(stats['std']),
        'rgb': turns_channels(stats),  # pictures are read as BGR
    }


def config_backbone(
    name: str, config: Any, weights: str, file: str | None
) -> tuple[dict[str, Any], str | None]:
    """Backbone of a config, its scope in front of its type, and file of its weights.

    Raises:
        PETLError: The config names no weights, and none are given.
    """
    node = copy.deepcopy(config.model['backbone']).to_dict()
    ours = node.get('type') == BUILDER
    backbone, checkpoint = (
        (node['backbone'], node.get('checkpoint')) if ours else (node, None)
    )
    given = backbone.get('pretrained')
    # A wrapper of timm that says True fetches them itself.
    own = given is True or named_weights(backbone.get('init_cfg'), given)
    if file is not None or weights == RANDOM:
        checkpoint = file
        for key in ('init_cfg', 'pretrained'):
            backbone.pop(key, None)
    elif checkpoint is None and not own:
        raise PETLError(
            f'{name} names no weights of its backbone; name a file of them, or '
            f'{RANDOM} for a trial'
        )
    kind = str(backbone['type'])
    if '.' not in kind:
        backbone['type'] = f'{config.get("default_scope") or "mmpretrain"}.{kind}'
    return _plain(backbone), str(checkpoint) if checkpoint else None


def _geometry(steps: Steps) -> Steps:
    """What a test pipeline does between loading and packing."""
    return [_plain(s) for s in steps if not str(s['type']).startswith(_NO_GEOMETRY)]


def _interpolation(steps: Steps) -> str:
    named = [step['interpolation'] for step in steps if 'interpolation' in step]
    return named[0] if named and named[0] in INTERPOLATIONS else 'bilinear'


def _plain(value: Any) -> Any:
    """Mappings and lists of Python's own, as records hold them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
