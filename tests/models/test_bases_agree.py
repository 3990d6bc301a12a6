"""One file, three ways into a run: upstream's ``init_cfg`` and our ``checkpoint``.

The third, ``base`` of ``mmpetl.PETLModel``, joins where that model is tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import ConfigDict
from small_weights import clip, image, official_swin, randomise, timm_swin
from torch import Tensor, nn

from mmpetl import compat

compat.install()

import mmaction.models  # noqa: E402, F401
import mmdet.models  # noqa: E402, F401
import mmpretrain.models  # noqa: E402, F401
import mmseg.models  # noqa: E402, F401

from mmpetl.core import PETLError, fingerprint  # noqa: E402
from mmpetl.models import petl_backbone  # noqa: E402
from mmpetl.models.petl_backbone import build_foreign  # noqa: E402

VIT = dict(img_size=32, patch_size=8)
ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
SEG = dict(embed_dims=16, num_layers=2, num_heads=2, mlp_ratio=2)
PYRAMID = dict(
    embed_dims=8,
    num_stages=2,
    num_layers=[1, 1],
    num_heads=[1, 2],
    strides=[4, 2],
    sr_ratios=[2, 1],
    out_indices=(0, 1),
)
SVT = dict(
    embed_dims=[8, 16],
    num_heads=[1, 2],
    patch_sizes=[4, 2],
    strides=[4, 2],
    mlp_ratios=[2, 2],
    depths=[2, 2],
    sr_ratios=[2, 1],
    windiow_sizes=[4, 4],
    out_indices=(0, 1),
)
SWIN = dict(embed_dims=16, depths=(2, 2, 2, 1), num_heads=(2, 2, 4, 4), window_size=4)
CONVNEXT = dict(arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8]))
VIDEO = dict(embed_dims=16, depth=1, num_heads=2, mlp_ratio=2, num_frames=4)


class Case(NamedTuple):
    """A backbone, and how upstream is told of its file.

    Attributes:
        config: The backbone.
        prefix: What stands before the names in the file.
        given: Upstream's own settings for a file; None for an ``init_cfg``.
        draw: What it is fed.
        lacks: Pattern of names that files of the class come without.
    """

    config: dict
    prefix: str = ''
    given: Callable[[str], dict] | None = None
    draw: Callable[[], Tensor] = lambda: image(64)
    lacks: str = '^$'


def part_of(path: str) -> dict:
    """An ``init_cfg`` that takes what lies below ``backbone``."""
    return {'init_cfg': dict(type='Pretrained', checkpoint=path, prefix='backbone.')}


CASES = {
    'mmpretrain-vit': Case(
        dict(type='mmpretrain.VisionTransformer', arch=ARCH, **VIT), draw=image
    ),
    'mmpretrain-beit': Case(
        dict(type='mmpretrain.BEiTViT', arch=ARCH, **VIT), draw=image
    ),
    'mmpretrain-convnext': Case(
        dict(type='mmpretrain.ConvNeXt', **CONVNEXT), 'backbone.', part_of
    ),
    'mmpretrain-deit3': Case(
        dict(type='mmpretrain.DeiT3', arch=ARCH, **VIT), 'backbone.', part_of, image
    ),
    'mmseg-vit': Case(dict(type='mmseg.VisionTransformer', **VIT, **SEG), draw=image),
    'mmseg-mit': Case(
        dict(type='mmseg.MixVisionTransformer', patch_sizes=[7, 3], **PYRAMID)
    ),
    'mmseg-beit': Case(
        dict(type='mmseg.BEiT', qv_bias=True, init_values=0.1, **VIT, **SEG), draw=image
    ),
    'mmseg-mae': Case(
        dict(type='mmseg.MAE', init_values=1.0, **VIT, **SEG),
        draw=image,
        lacks=r'gamma_[12]$|relative_position_bias_table$',
    ),
    'mmseg-svt': Case(dict(type='mmseg.SVT', **SVT)),
    'mmseg-swin': Case(dict(type='mmseg.SwinTransformer', **SWIN), 'backbone.'),
    'mmdet-swin': Case(dict(type='mmdet.SwinTransformer', **SWIN), 'backbone.'),
    'mmdet-pvt': Case(
        dict(
            type='mmdet.PyramidVisionTransformer',
            pretrain_img_size=64,
            patch_sizes=[4, 2],
            paddings=[0, 0],
            mlp_ratios=[2, 2],
            **PYRAMID,
        )
    ),
    'mmdet-resnet': Case(
        dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8),
        'backbone.',
        part_of,
    ),
    'mmaction-vit': Case(
        dict(type='mmaction.VisionTransformer', **VIT, **VIDEO), draw=clip
    ),
}


def features(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.train(False)
    with torch.no_grad():
        found = model(x)
    return list(found) if isinstance(found, tuple | list) else [found]


@pytest.mark.parametrize('name', CASES)
def test_init_cfg_and_checkpoint_give_equal_features(tmp_path: Path, name: str):
    case = CASES[name]
    torch.manual_seed(0)
    source = build_foreign(case.config)
    starts = {k: t.clone() for k, t in source.state_dict().items()}
    randomise(source)
    for name, tensor in source.state_dict().items():
        if re.search(case.lacks, name):
            tensor.copy_(starts[name])
    expected = features(source, case.draw())
    path = tmp_path / 'base.pth'
    state = {
        case.prefix + k: t
        for k, t in source.state_dict().items()
        if not re.search(case.lacks, k)
    }
    if case.prefix:
        state['head.fc.weight'] = torch.ones(2, 2)
    torch.save({'state_dict': state}, path)
    given = case.given or (
        lambda file: {'init_cfg': dict(type='Pretrained', checkpoint=file)}
    )
    # Upstream reads its settings by attribute, as a Config has them.
    theirs = petl_backbone(ConfigDict(case.config, **given(str(path))))
    ours = petl_backbone(case.config, checkpoint=path)
    for model in (theirs, ours):
        found = features(model, case.draw())
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert b.std() > 1e-3
            assert torch.equal(a, b)


def authors_swin(path: Path) -> str:
    """A file of Swin's authors, with the indices that it stores beside the tables."""
    source = timm_swin()
    state = official_swin(source)
    for name, buffer in source.named_buffers():
        if name.endswith('relative_position_index'):
            assert state[name].shape == buffer.shape
            state[name] = buffer
    torch.save({'model': state}, path)
    return str(path)


def test_the_authors_swin_is_one_base_by_upstreams_conversion_and_by_ours(tmp_path):
    """A plain dict, too, though mmdet reads its settings by attribute."""
    file = authors_swin(tmp_path / 'swin.pth')
    given = dict(
        init_cfg=dict(type='Pretrained', checkpoint=file), convert_weights=True
    )
    det, seg = (dict(type=f'{p}.SwinTransformer', **SWIN) for p in ('mmdet', 'mmseg'))
    roads = [
        petl_backbone({**det, **given}, 'LoRA'),
        petl_backbone(det, 'LoRA', checkpoint=file),
        petl_backbone(seg, 'LoRA', checkpoint=file),
    ]
    assert len({fingerprint(model) for model in roads}) == 1
    expected = features(roads[0], image(64))
    for model in roads[1:]:
        for a, b in zip(features(model, image(64)), expected, strict=True):
            assert b.std() > 1e-3
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('package', 'args', 'said'),
    [
        ('mmdet', {}, 'set convert_weights=True'),
        ('mmseg', {}, 'drop it from'),
        ('mmdet', {'use_abs_pos_embed': True, 'convert_weights': True}, 'drop it from'),
    ],
)
def test_a_file_that_upstreams_swin_does_not_read_is_one_line(
    tmp_path, package, args, said
):
    file = authors_swin(tmp_path / 'swin.pth')
    if 'use_abs_pos_embed' in args:  # upstream takes its table apart on four axes
        state = torch.load(file)
        state['model']['absolute_pos_embed'] = torch.ones(1, 56 * 56, 16)
        torch.save(state, file)
    config = dict(type=f'{package}.SwinTransformer', **SWIN, **args)
    config['init_cfg'] = dict(type='Pretrained', checkpoint=file)
    with pytest.raises(PETLError) as caught:
        petl_backbone(config, 'LoRA')
    text = str(caught.value)
    assert text.startswith(file)
    assert said in text
    assert '\n' not in text
    del config['init_cfg']
    ours = petl_backbone(config, 'LoRA', checkpoint=file)
    assert fingerprint(ours)
