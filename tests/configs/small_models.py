"""A mini model and mini data for any recipe or leaf; everything else stays its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from mmpetl.config.load import load_config, read_config
from mmpetl.config.nodes import PHASES, datasets_of
from mmpetl.datasets.catalog import CATALOG

CONFIGS = Path(__file__).parents[2] / 'configs'

# Mini config with a model of the same family, and what sides in px are divided by.
FAMILIES = {
    'mmpretrain': ('digits', 7),
    'hmdb51': ('hmdb51', 7),
    'hmdb51_swin': ('hmdb51_swin', 7),
    'mmseg': ('ade20k', 8),
    'coco': ('coco', 8),
    'voc': ('voc', 8),
}

HEADS = ('LinearClsHead', 'I3DHead', 'TimeSformerHead', 'BatchNormHead')

# A ViT as deep and as wide as the methods' published sizes need, and no larger.
DEEP = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=128, num_layers=12, num_heads=4, feedforward_channels=128),
    img_size=32,
    patch_size=16,
    out_type='cls_token',
)


def family_of(config: Any) -> str:
    scope = config.default_scope
    if scope == 'mmaction':
        swin = 'Swin' in config.model.backbone.backbone.type
        return 'hmdb51_swin' if swin else 'hmdb51'
    if scope == 'mmdet':
        return 'coco' if config.dataset == 'coco' else 'voc'
    return scope


def small(path: Path, options: dict | None = None, **kwargs: Any) -> Any:
    """A config with the mini model of its family and pictures to match."""
    config = load_config(path, options, **kwargs)
    name, factor = FAMILIES[family_of(config)]
    model = copy.deepcopy(read_config(CONFIGS / f'mini/{name}.py').model)
    if config.model.backbone.backbone.type == 'mmpetl.FrameBackbone':
        over_frames(model.backbone)
    model.backbone.method = config.model.backbone.method
    if 'head' in model:
        model.head.loss = config.model.head.loss
        model.train_cfg = config.model.get('train_cfg')
    set_classes(model, CATALOG[config.dataset].num_classes)
    model.data_preprocessor = config.model.data_preprocessor
    if 'size' in model.data_preprocessor:
        model.data_preprocessor.size = (64, 64)
    config.model = model
    for phase in PHASES:
        loader = config.get(f'{phase}_dataloader')
        if loader:
            loader.update(num_workers=0, persistent_workers=False)
            loader.batch_size = min(2, loader.batch_size)
        for dataset in datasets_of(config, phase):
            dataset.pipeline = divided(dataset.pipeline, factor)
    return config


def over_frames(trunk: Any) -> None:
    """Put the mini model of images in the place of that of clips."""
    image = copy.deepcopy(read_config(CONFIGS / 'mini/digits.py').model.backbone)
    trunk.checkpoint = image.checkpoint
    trunk.backbone = dict(
        type='mmpetl.FrameBackbone', num_frames=8, backbone=image.backbone
    )


def set_classes(node: Any, count: int) -> None:
    """Write the class count wherever a head has one (an RPN has its own)."""
    if isinstance(node, dict):
        for key, child in node.items():
            if key == 'num_classes':
                node[key] = count
            elif key != 'rpn_head':
                set_classes(child, count)
        if str(node.get('type')).rpartition('.')[2] in HEADS:
            node['num_classes'] = count
    elif isinstance(node, list | tuple):
        for child in node:
            set_classes(child, count)


def divided(node: Any, factor: int, key: str = '') -> Any:
    """A pipeline with every side in px divided."""
    if isinstance(node, dict):
        return {k: divided(v, factor, k) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(divided(v, factor, key) for v in node)
    side = key in ('scale', 'scales', 'size', 'crop_size', 'input_size')
    if side and isinstance(node, int) and node > 32:
        return round(node / factor)
    return node


def two_steps(config: Any, data: dict) -> tuple[float, float]:
    """Two optimizer steps on one batch without a Runner; what they had for a loss.

    Raises:
        AssertionError: A loss is not finite, or nothing moved.
    """
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
        wrapper = build_optim_wrapper(model, copy.deepcopy(config.optim_wrapper))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    losses = []
    for _ in range(2):
        logs = model.train_step(copy.deepcopy(data), wrapper)
        losses.append(float(logs['loss']))
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    moved = sum(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
    assert moved >= 0.5 * len(trained)
    return losses[0], losses[1]
