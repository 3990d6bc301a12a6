"""The walks over models of upstream: rows, states and the table."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from mmengine.config import Config
from torch import nn

from mmpetl.core import PETLError

FOLDER = Path(__file__).parents[2] / 'tools' / 'misc'


@pytest.fixture(scope='module')
def tools() -> dict[str, ModuleType]:
    """The scripts, as they import one another."""
    sys.path.insert(0, str(FOLDER))
    try:
        names = ('walking', 'walking_models', 'walk_models', 'walk_upstream')
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))


def test_every_builder_of_eva_and_vit_is_walked(tools) -> None:
    names = tools['walking_models'].names_of('timm')
    assert len(names) == len(set(names))
    for module in ('eva', 'vision_transformer'):
        assert set(timm.list_models(module=module)) <= set(names)
    families = ('beit', 'deit', 'swin_transformer', 'swin_transformer_v2', 'pvt_v2')
    families += ('vision_transformer_sam', 'twins', 'hiera', 'hieradet_sam2')
    for module in (*families, 'convnext', 'resnet', 'vitamin'):
        assert set(timm.list_models(module=module)) & set(names), module


@pytest.mark.parametrize(
    'name',
    ['vit_5b_patch16_sapiens2', 'vit_giant_patch14_dinov2', 'vit_tiny_patch16_224'],
)
def test_wide_builders_get_small(tools, name: str) -> None:
    model, x = tools['walking_models'].build('timm', name)
    assert len(model.blocks) == 2
    assert model.embed_dim <= 768
    assert x.shape[-1] == 8 * model.patch_embed.patch_size[0]
    if 'sapiens2' in name:
        assert [b.attn.num_kv_heads for b in model.blocks] == [6, 3]
    assert sum(p.numel() for p in model.parameters()) < 20e6


def test_a_walk_is_taken_up_where_it_stopped(tools, tmp_path) -> None:
    walk, out = tools['walk_models'].walk, tmp_path / 'rows.jsonl'
    only, methods = ['vit_tiny_patch16_384', 'vit_small_patch16_18x2_224'], ['LoRA']
    rows = list(walk(['timm'], methods, only, out))
    assert [row['state'] for row in rows] == ['worked', 'worked']
    assert [row['backbone'][-11:] for row in rows] == ['(by layers)', 'Transformer']
    assert rows[1]['deltas'] > 0
    assert tools['walking'].read(out) == rows
    tools['walking'].append(out, rows[1])  # as of two walks at once
    assert tools['walking'].read(out) == rows
    assert not list(walk(['timm'], methods, only, out))
    (more,) = walk(['timm'], ['Mona', 'LoRA'], only[1:], out)
    assert (more['method'], more['state']) == ('Mona', 'refused')
    assert 'ParallelThingsBlock' in more['line']
    text = tools['walking'].table(tools['walking'].read(out), 'models')
    assert '| timm | timm.VisionTransformer | LoRA | 1 | 1 | 0 | 0 | 0 |' in text
    assert '| all | | | 3 | 2 | 1 | 0 | 0 |' in text
    assert text.count('\n- 1 x ') == 1


def test_what_fails_without_a_method_is_upstreams(tools) -> None:
    judged = partial(tools['walking'].judged, own={'config': 'x'})

    def fails(facts: dict) -> dict:
        facts['backbone'] = 'timm.Broken'
        raise RuntimeError('two\nlines')

    def works(facts: dict) -> dict:
        return facts | {'state': 'worked', 'line': ''}

    def refuses(facts: dict) -> dict:
        raise PETLError('no place')

    row = judged(fails, works)
    assert (row['state'], row['line']) == ('failed', 'RuntimeError: two lines')
    assert row['backbone'] == 'timm.Broken'
    assert judged(fails, fails)['state'] == 'upstream'
    assert judged(refuses, works)['state'] == 'refused'
    assert judged(refuses, fails)['state'] == 'upstream'


def test_a_step_that_moves_nothing_and_a_written_base_are_told(tools) -> None:
    shared, model = tools['walking'], torch.nn.Linear(2, 2).requires_grad_(False)
    held = shared.versions(model)
    shared.check_unwritten(model, held)
    with torch.no_grad():
        model.bias.add_(1)
    with pytest.raises(ValueError, match='bias is frozen'):
        shared.check_unwritten(model, held)
    same = {'a': torch.zeros(1)}
    with pytest.raises(ValueError, match='moved none of 1'):
        shared.moved(same, {'a': torch.zeros(1)})
    assert shared.moved(same, {'a': torch.ones(1)}) == 1


def test_outputs_that_differ_at_the_start_are_told(tools) -> None:
    model, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    check = tools['walk_models']._check_equal
    with torch.no_grad():
        wanted = [model(x)]
        check(model, x, wanted)
        model.bias.add_(1)
    with pytest.raises(ValueError, match='outputs differ by'):
        check(model, x, wanted)


@pytest.mark.parametrize(
    ('package', 'name', 'why'),
    [
        (
            'mmdet',
            'glip/lvis/glip_atss_swin-l_fpn_dyhead_pretrain_zeroshot_lvis.py',
            'for testing alone: its training data bring no text',
        ),
        ('mmdet', 'glip/glip_atss_swin-l_fpn_dyhead_16xb2_ms-2x_funtune_coco.py', None),
        ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', None),
    ],
)
def test_configs_that_train_nothing_are_told(tools, package, name, why) -> None:
    walk = tools['walk_upstream']
    config = Config.fromfile(walk.root_of(package) / name)
    assert walk._not_meant(package, config, walk.backbone_of(config)) == why


def test_clips_with_boxes_as_ava_has_them(tools) -> None:
    walk = tools['walk_upstream']
    kind = 'detection/videomae'
    name = 'vit-base-p16_videomae-k400-pre_8xb8-16x4x1-20e-adamw_ava-kinetics-rgb.py'
    config = Config.fromfile(walk.root_of('mmaction') / kind / name)
    batch = walk.drawn_batch('mmaction', config, nn.Module())
    assert [clip.shape for clip in batch['inputs']] == [(3, 16, 224, 224)] * 2
    for sample in batch['data_samples']:
        assert sample.gt_instances.labels.shape == (2, 81)
        assert sample.gt_instances.labels.sum() == 4
        assert sample.proposals.bboxes.shape == (2, 4)
