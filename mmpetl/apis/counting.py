"""Trainable parameters of configs and of methods on full-size backbones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmpetl.apis.building import build_model, without_memory
from mmpetl.config.load import as_config
from mmpetl.config.nodes import method_of, petl_backbone_of
from mmpetl.config.scope import build_backbone
from mmpetl.core import (
    PETLError,
    build_entries,
    count_trainable,
    inject,
    injections,
    is_several,
    methods_name,
    suggest,
)
from mmpetl.core.delta_file import to_data
from mmpetl.models.init_entries import loads_file

FULL_SIZE: dict[str, dict[str, Any]] = {
    'vit_b16': {
        'type': 'mmpretrain.VisionTransformer',
        'arch': 'b',
        'img_size': 224,
        'patch_size': 16,
    },
    'swin_b': {'type': 'mmpretrain.SwinTransformer', 'arch': 'base', 'img_size': 224},
    'swin_l': {'type': 'mmpretrain.SwinTransformer', 'arch': 'large', 'img_size': 224},
    'videomae_b': {
        'type': 'mmaction.VisionTransformer',
        'img_size': 224,
        'patch_size': 16,
        'embed_dims': 768,
        'depth': 12,
        'num_heads': 12,
        'mlp_ratio': 4,
        'qkv_bias': True,
        'num_frames': 8,
    },
    'video_swin_b': {
        'type': 'mmaction.SwinTransformer3D',
        'arch': 'base',
        'pretrained2d': False,
        'patch_size': (2, 4, 4),
        'window_size': (8, 7, 7),
    },
}
"""Configs of the backbones that papers report counts on."""


def count_config(config: Any) -> dict[str, Any]:
    """Counts of a config's model by owner; no weight file is needed.

    Args:
        config: Path or ``Config``.

    Returns:
        ``method``, ``backbone`` (class), the four counts, ``percent`` of the backbone.
    """
    config = without_files(config)
    node = petl_backbone_of(config)
    method = method_of(config)
    if method is None:
        raise PETLError('the config has no method, so all of its model trains')
    model = build_model(config, quiet=True)
    trunk = config.model.get('backbone') if node is None else node['backbone']
    kind = (
        type(injections(model)[0][1]).__name__.removeprefix('PETL')
        if trunk is None
        else to_data(trunk['type'])
    )
    return _row(methods_name(method), kind.rpartition('.')[2], model)


def without_files(config: Any) -> Any:
    """A copy of a config whose model starts from no file.

    Args:
        config: Path or ``Config``.
    """
    config = copy.deepcopy(as_config(config))
    node = petl_backbone_of(config)
    if node is None:
        _drop_files(config.model)
    else:
        node['checkpoint'] = None
        _drop_files(node)
    return config


def _drop_files(model: Any) -> None:
    """Let the model of a config, or what is below it, start from no file."""
    model.pop('base', None)
    for node in (model, *(v for v in model.values() if isinstance(v, Mapping))):
        node.pop('pretrained', None)
        if node.get('pretrained2d'):
            node['pretrained2d'] = False  # it would inflate a file
        entries = node.get('init_cfg')
        entries = entries if isinstance(entries, list | tuple) else [entries or {}]
        if any(map(loads_file, entries)):
            node.pop('init_cfg')


def count_pairs(
    methods: Iterable[str], backbones: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Counts of methods, with their defaults, on backbones of :data:`FULL_SIZE`.

    Yields:
        A row as of :func:`count_config`; ``refused`` says why where the backbone
        cannot serve the method.
    """
    configs = {methods_name(c): c for c in map(_fresh, methods)}
    for stem in backbones:
        if stem not in FULL_SIZE:
            raise PETLError(
                f'unknown backbone {stem!r}.{suggest(stem, FULL_SIZE)} '
                f'There are: {", ".join(FULL_SIZE)}'
            )
        with without_memory():
            plain = build_backbone(FULL_SIZE[stem])
        for name, config in configs.items():
            try:
                with without_memory():
                    model = inject(copy.deepcopy(plain), config)
            except PETLError as error:
                yield {'method': name, 'backbone': stem, 'refused': str(error)}
                continue
            yield _row(name, stem, model)


def _fresh(method: Any) -> Any:
    """What builds methods anew for each backbone; a wrong name is said at once."""
    configs = [entry.config() for entry in build_entries(method)]
    return configs if is_several(method) else configs[0]


def _row(method: str, backbone: str, model: Any) -> dict[str, Any]:
    counts = count_trainable(model)
    whole = counts.backbone + counts.base
    percent = 100 * counts.backbone / whole
    return {
        'method': method,
        'backbone': backbone,
        **counts.as_dict(),
        'percent': percent,
    }
