"""One backbone, a head and a loss per task."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, PixelData

from mmpetl.core import PETLError, count_trainable
from mmpetl.core.tasks import task_switch
from mmpetl.models import DepthHead, MultiTaskModel, SegmentationHead

WIDTHS = [16, 32]
METHODS = {
    'linear_probe': {'type': 'LinearProbe'},
    'polyhistor_lite': {'type': 'PolyhistorLite', 'rank': 2},
    'vmt_adapter': {'type': 'VMTAdapter', 'reduction': 4},
    'mt_lora': {'type': 'MTLoRA', 'rank': 3, 'task_rank': 2, 'drop_rate': 0.0},
}


def heads(**more) -> dict:
    common = {'in_channels': WIDTHS, 'channels': 8}
    return {
        'segmentation': {'type': 'mmpetl.SegmentationHead', 'num_classes': 5, **common},
        'depth': {'type': 'mmpetl.DepthHead', 'loss_weight': 0.5, **common},
    } | more


def model(method, **args) -> MultiTaskModel:
    backbone = {
        'type': 'mmpetl.PETLBackbone',
        'backbone': tiny.base('mmpretrain_swin'),
        'method': method,
    }
    torch.manual_seed(5)
    made = MultiTaskModel(backbone, **{'heads': heads()} | args)
    tiny.shake_(made)
    return made


def samples(count: int = 2, size=(32, 32), original=(20, 28)) -> list[BaseDataElement]:
    g = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        labels = torch.randint(0, 5, (1, *size), generator=g)
        labels[0, 0] = 255
        depth = 1 + 5 * torch.rand((1, *size), generator=g)
        depth[0, 0] = 0
        depth[0, 1] = 255  # what batches are padded with
        sample = BaseDataElement(
            metainfo={'img_shape': (24, 32), 'ori_shape': original}
        )
        sample.gt_sem_seg = PixelData(data=labels)
        sample.gt_depth_map = PixelData(data=depth)
        found.append(sample)
    return found


@pytest.mark.parametrize('name', METHODS)
def test_a_pass_per_task_where_the_method_asks_for_it(name):
    made = model(METHODS[name])
    calls = []
    made.backbone.register_forward_hook(lambda *_: calls.append(1))
    scores = made(tiny.images('mmpretrain_swin'))
    assert len(calls) == (2 if name == 'polyhistor_lite' else 1)
    assert scores['segmentation'].shape == (2, 5, 8, 8)
    assert scores['depth'].shape == (2, 1, 8, 8)


@pytest.mark.parametrize('name', METHODS)
def test_both_losses_reach_every_trainable_parameter(name):
    made = model(METHODS[name])
    made.train()
    losses = made(tiny.images('mmpretrain_swin'), samples(), mode='loss')
    assert set(losses) == {'loss_segmentation', 'loss_depth'}
    sum(losses.values()).backward()
    for key, param in made.named_parameters():
        if param.requires_grad:
            assert param.grad.any(), key
        else:
            assert param.grad is None, key


def test_losses_leave_out_what_is_not_annotated():
    made, batch = model(METHODS['linear_probe']), samples()
    made.eval()
    x = tiny.images('mmpretrain_swin')
    losses, scores = made(x, batch, mode='loss'), made(x)
    labels = torch.cat([s.gt_sem_seg.data for s in batch])
    depth = torch.stack([s.gt_depth_map.data for s in batch])
    full = {
        task: F.interpolate(score, (32, 32), mode='bilinear')
        for task, score in scores.items()
    }
    chosen = full['segmentation'].log_softmax(1).movedim(1, -1)[:, 1:]
    picked = chosen.gather(-1, labels[:, 1:, :, None])
    torch.testing.assert_close(losses['loss_segmentation'], -picked.mean())
    gap = (full['depth'] - depth)[:, :, 2:].abs().mean()
    torch.testing.assert_close(losses['loss_depth'], 0.5 * gap)


def test_a_batch_without_annotation_has_no_loss_but_a_gradient_of_zero():
    made, batch = model(METHODS['vmt_adapter']), samples()
    for sample in batch:
        sample.gt_sem_seg.data.fill_(255)
        sample.gt_depth_map.data.fill_(0)
    losses = made(tiny.images('mmpretrain_swin'), batch, mode='loss')
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in made.heads.parameters())


def test_predictions_have_the_size_of_the_original_image():
    made = model(METHODS['vmt_adapter'])
    made.eval()
    x = tiny.images('mmpretrain_swin')
    with torch.no_grad():
        found, scores = made(x, samples(), mode='predict'), made(x)
    for sample in found:
        assert sample.pred_sem_seg.data.shape == (1, 20, 28)
        assert sample.pred_sem_seg.data.dtype == torch.int64
        assert sample.pred_depth_map.data.shape == (1, 20, 28)
    # Padding (rows 24 to 32 of the input) is cut off before resizing.
    want = F.interpolate(scores['depth'], (32, 32), mode='bilinear')[:, :, :24]
    want = F.interpolate(want, (20, 28), mode='bilinear')
    torch.testing.assert_close(found[1].pred_depth_map.data, want[1])


def test_the_method_takes_the_tasks_of_the_heads():
    for name in ('polyhistor_lite', 'vmt_adapter'):
        made = model(METHODS[name])
        assert task_switch(made).tasks == ('segmentation', 'depth')
    made = model('VMTAdapter')
    assert task_switch(made).tasks == ('segmentation', 'depth')


@pytest.mark.parametrize(
    'tasks',
    [['segmentation'], ['segmentation', 'edges'], ['segmentation'] + ['d', 'e']],
)
def test_tasks_that_are_not_those_of_the_heads_are_refused(tasks):
    message = rf'the method has {len(tasks)} tasks .* heads for 2 \(segmentation, depth'
    with pytest.raises(PETLError, match=message) as error:
        model({**METHODS['vmt_adapter'], 'tasks': tasks})
    assert '\n' not in str(error.value)


def test_an_unknown_task_is_refused():
    made = model(METHODS['polyhistor_lite'])
    x = tiny.images('mmpretrain_swin')
    assert list(made.scores(x, ['depth'])) == ['depth']
    with pytest.raises(PETLError, match=r"'depht'. Did you mean 'depth'\?"):
        made.scores(x, ['depht'])


def test_bad_input_is_one_line():
    with pytest.raises(PETLError, match='MultiTaskModel needs at least one task'):
        model(METHODS['linear_probe'], heads={})
    with pytest.raises(PETLError, match="'loss' or 'predict', got 'train'"):
        model(METHODS['linear_probe'])(tiny.images('mmpretrain_swin'), mode='train')
    head = DepthHead([16, 48], 8)
    with pytest.raises(PETLError, match=r'in_channels=\[16, 48\], the backbone gives'):
        head([torch.zeros(1, 16, 8, 8), torch.zeros(1, 32, 4, 4)])
    with pytest.raises(PETLError, match='needs gt_sem_seg in every sample'):
        SegmentationHead(WIDTHS, 8, 5).loss(torch.zeros(1), [BaseDataElement()])


@pytest.mark.parametrize(
    ('name', 'count'),
    # Formulas of their specifications for Swin-T and two tasks.
    [
        ('polyhistor_lite', 411_824 - 2 * 64),
        ('vmt_adapter', 274_260 + 2 * 2_880),
        ('mt_lora', 4_552_704 - 2 * 69_120),
    ],
)
def test_the_leaf_builds_at_full_size_with_the_tasks_of_its_heads(name, count):
    from mmengine.config import Config

    from mmpetl.apis.building import build_model

    configs = Path(__file__).parents[2] / 'configs'
    cfg = Config.fromfile(configs / name / 'nyud_mt.py')
    cfg.model.backbone.checkpoint = None
    made = build_model(cfg, quiet=True)
    assert count_trainable(made).delta == count
    assert made.tasks == task_switch(made).tasks == ('segmentation', 'depth')
    head = 1440 * 256 + 256 + 2 * 256 + 256 + 1
    assert sum(p.numel() for p in made.heads.depth.parameters()) == head
